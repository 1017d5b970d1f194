"""Judges of replies: does a text express an emotion? Their interface, and their answers kept by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from emovllm.errors import JudgeError

# The label of a text that expresses no emotion; it stands beside the emotions that a style names.
NEUTRAL = "neutral"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of one text."""

    match: bool
    label: str | None  # what a blind judge takes the text for; None from a judge that is told the target
    reason: str


class Judge(Protocol):
    """Says of each text whether it expresses its target emotion.

    config: what besides the name decides the answers (a model, a prompt, a word list); part of the cache's keys.
    """

    name: str
    config: Mapping[str, Any]

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]: ...


class CachedJudge:
    """A judge whose answers are kept in a file of JSON lines, by name, config, target and text."""

    def __init__(self, judge: Judge, path: str | Path) -> None:
        """Raises: JudgeError where the file is not a judge's cache."""
        self.name, self.config = judge.name, judge.config
        self._judge = judge
        self._path = Path(path)
        self._known: dict[str, Verdict] = {}
        for number, line in enumerate(read_whole_lines(self._path), 1):
            try:
                entry = json.loads(line)
                key = entry.pop("key")
                self._known[key] = Verdict(**entry)
            except (ValueError, TypeError, KeyError, AttributeError):
                raise JudgeError(f"{self._path}, line {number}: not an answer of a judge; delete the file") from None

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]:
        """As the judge itself, which is asked only for what it has not answered before, and once for equal texts."""
        keys = [self._key(text, target) for text, target in zip(texts, targets, strict=True)]
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._known}
        if new:
            asked = sorted(new.values())
            verdicts = self._judge.judge([texts[i] for i in asked], [targets[i] for i in asked])
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                for i, verdict in zip(asked, verdicts, strict=True):
                    self._known[keys[i]] = verdict
                    file.write(json.dumps({"key": keys[i], **asdict(verdict)}, ensure_ascii=False) + "\n")
        return [self._known[key] for key in keys]

    def _key(self, text: str, target: str) -> str:
        return hashlib.sha256(json.dumps([self.name, self.config, target, text], sort_keys=True).encode()).hexdigest()


def read_whole_lines(path: Path) -> list[str]:
    """The lines of a file that is appended to; what an interruption left of a last one is cut off the file.

    A file that does not exist has none.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    # Not splitlines(): JSON may hold separators, such as U+2028, at which that would split.
    return content[:whole].decode("utf-8").split("\n")[:-1]
