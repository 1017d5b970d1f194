"""Judges of replies: does a text express an emotion? Their interface, and their answers kept by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from emovllm.errors import JudgeError

# The label of a text that expresses no emotion; it stands beside the emotions that a style names.
NEUTRAL = "neutral"
# The finish reason of a reply that an endpoint's content filter keeps back: there is nothing to judge.
FILTERED = "content_filter"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of one text; where it could not be judged, why."""

    match: bool
    label: str | None  # what a blind judge takes the text for; None from a judge that is told the target
    reason: str
    judged: bool = True

    @classmethod
    def unjudged(cls, reason: str) -> Verdict:
        """Of a text that counts neither as a match nor as none."""
        return cls(False, None, reason, judged=False)


class Judge(Protocol):
    """Says of each text whether it expresses its target emotion.

    config: what besides the name decides the answers (a model, a prompt, a word list); part of the cache's keys.
    """

    name: str
    config: Mapping[str, Any]

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]: ...


@runtime_checkable
class GradualJudge(Judge, Protocol):
    """A judge whose verdicts come one by one, each at a price: they can be kept before the last one is there."""

    def judge_each(self, texts: Sequence[str], targets: Sequence[str], done: Callable[[int, Verdict], None]) -> None:
        """As `judge`; `done` is given each verdict as it comes, with the place of its text."""


class CachedJudge:
    """A judge whose answers are kept in a file of JSON lines as they come, by name, config, target and text.

    Texts that could not be judged are not kept: the next run asks for them again.
    """

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
        answers = self._ask(sorted(new.values()), keys, texts, targets) if new else {}
        return [self._known[key] if key in self._known else answers[key] for key in keys]

    def _ask(
        self, places: Sequence[int], keys: Sequence[str], texts: Sequence[str], targets: Sequence[str]
    ) -> dict[str, Verdict]:
        """The verdicts on the texts at these places, by key."""
        answers: dict[str, Verdict] = {}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:

            def done(number: int, verdict: Verdict) -> None:
                key = keys[places[number]]
                answers[key] = verdict
                if verdict.judged:
                    self._known[key] = verdict
                    file.write(_line(key, verdict))
                    file.flush()

            new_texts, new_targets = [texts[i] for i in places], [targets[i] for i in places]
            if isinstance(self._judge, GradualJudge):
                self._judge.judge_each(new_texts, new_targets, done)
            else:
                for number, verdict in enumerate(self._judge.judge(new_texts, new_targets)):
                    done(number, verdict)
        return answers

    def _key(self, text: str, target: str) -> str:
        return hashlib.sha256(json.dumps([self.name, self.config, target, text], sort_keys=True).encode()).hexdigest()


def require_judged(name: str, verdicts: Sequence[Verdict]) -> None:
    """Raises: JudgeError where a judge could judge none of the texts that there are."""
    if verdicts and not any(verdict.judged for verdict in verdicts):
        raise JudgeError(
            f"the judge {name} could judge none of {len(verdicts)} replies, the first because: {verdicts[0].reason}"
        )


def _line(key: str, verdict: Verdict) -> str:
    entry = {"key": key, "match": verdict.match, "label": verdict.label, "reason": verdict.reason}
    return json.dumps(entry, ensure_ascii=False) + "\n"


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
