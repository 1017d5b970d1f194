"""An evaluation's folder: replies and their perplexities, appended as they come, taken up by a rerun."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from emovllm.errors import EvaluationError
from emovllm.files import write_atomically
from emovllm_offline.evaluation.plan import Key
from emovllm_offline.judges.judge import read_whole_lines

SETTINGS = "evaluate.json"
REPLIES = "replies.jsonl"
PERPLEXITY = "perplexity.jsonl"
SESSIONS = "sessions.jsonl"
NEUTRAL, INSTRUCTION = "neutral", "instruction"


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Key


class Reply(_Row):
    """One reply as generated. `prompt` and `tokens` are token ids; a token that ended the reply is not among them."""

    text: str
    finish_reason: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


class Likelihood(_Row):
    """How likely a reply's tokens are to the unsteered model, after the prompt that `given` names.

    nll: mean negative log-probability per token, in nats.
    """

    given: str
    nll: float


class Session(BaseModel):
    """One uninterrupted stretch of generating or scoring. busy: mean share of the allowed requests that ran."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: str
    requests: int
    tokens: int
    seconds: float
    busy: float


Row = TypeVar("Row", bound=BaseModel)


class Folder:
    """OUT of an evaluation, of one set of settings only."""

    def __init__(self, path: Path, settings: Mapping[str, Any], fresh: bool = False) -> None:
        """Raises: EvaluationError where the folder holds an evaluation with other settings."""
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        if fresh:
            for name in (SETTINGS, REPLIES, PERPLEXITY, SESSIONS):
                (path / name).unlink(missing_ok=True)
        self._agree(json.loads(json.dumps(settings)))
        self.replies = {row.key: row for row in self._read(REPLIES, Reply)}
        self.likelihoods = {(row.key, row.given): row for row in self._read(PERPLEXITY, Likelihood)}
        self.sessions = list(self._read(SESSIONS, Session))

    def add_reply(self, row: Reply) -> None:
        self.replies[row.key] = row
        self._append(REPLIES, row)

    def add_likelihood(self, row: Likelihood) -> None:
        self.likelihoods[row.key, row.given] = row
        self._append(PERPLEXITY, row)

    def add_session(self, row: Session) -> None:
        self.sessions.append(row)
        self._append(SESSIONS, row)

    def _append(self, name: str, row: BaseModel) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(row.model_dump_json() + "\n")

    def _read(self, name: str, kind: type[Row]) -> Iterable[Row]:
        for number, line in enumerate(read_whole_lines(self.path / name), 1):
            try:
                yield kind.model_validate_json(line)
            except ValidationError:
                raise EvaluationError(
                    f"{self.path / name}, line {number}: damaged; give --fresh, or another --out"
                ) from None

    def _agree(self, ours: dict[str, Any]) -> None:
        path = self.path / SETTINGS
        if not path.exists():
            if (self.path / REPLIES).exists():
                raise EvaluationError(f"{self.path} has {REPLIES} but no {SETTINGS}: give --fresh, or another --out")
            write_atomically(path, (json.dumps(ours, indent=1) + "\n").encode())
            return
        try:
            theirs = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise EvaluationError(f"{path}: damaged; give --fresh, or another --out") from None
        if different := [name for name in ours | theirs if ours.get(name) != theirs.get(name)]:
            raise EvaluationError(
                f"{self.path} holds an evaluation with other settings ({', '.join(different)}): "
                "repeat its options to continue it, or give --fresh, or another --out"
            )
