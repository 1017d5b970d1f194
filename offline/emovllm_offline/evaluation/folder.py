"""An evaluation's folder: replies and their perplexities, appended as they come, taken up by a rerun."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from emovllm_offline.evaluation.plan import Key
from emovllm_offline.storage.journal import Journal

SETTINGS = "evaluate.json"
REPLIES = "replies.jsonl"
PERPLEXITY = "perplexity.jsonl"
SESSIONS = "sessions.jsonl"
PAPER_WAY = "paper_way.json"
NEUTRAL, INSTRUCTION = "neutral", "instruction"


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Key


class ReplyReadout(BaseModel):
    """What a probe, by its digest, read after a layer: the probability of each label.

    reply: the mean over the reply's tokens. prompt: at the prompt's last token, before anything was written.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    probe: str
    layer: int
    reply: dict[str, float]
    prompt: dict[str, float]


class Reply(_Row):
    """One reply as generated. `prompt` and `tokens` are token ids; a token that ended the reply is not among them.

    readout: None where nobody asked for it.
    """

    text: str
    finish_reason: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    readout: ReplyReadout | None = None


class Likelihood(_Row):
    """How likely a reply's tokens are to the unsteered model, after the prompt that `given` names.

    nll: mean negative log-probability per token, in nats.
    """

    given: str
    nll: float


class Session(BaseModel):
    """One uninterrupted stretch of generating or scoring.

    busy: mean share of the allowed requests that ran. notes: what the server refused, and what was done instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: str
    requests: int
    tokens: int
    seconds: float
    busy: float
    notes: tuple[str, ...] = ()


class Folder:
    """OUT of an evaluation, of one set of settings only."""

    def __init__(self, path: Path, settings: Mapping[str, Any], fresh: bool = False, name: str = SETTINGS) -> None:
        """name: of the settings' file. Raises: StoredError where the folder holds an evaluation with other settings."""
        self.path = path
        files, remedy = (REPLIES, PERPLEXITY, SESSIONS, PAPER_WAY), "give --fresh, or another --out"
        journal = Journal(path, settings, name=name, files=files, remedy=remedy, fresh=fresh)
        self._replies = journal.lines(REPLIES, Reply)
        self._likelihoods = journal.lines(PERPLEXITY, Likelihood)
        self._sessions = journal.lines(SESSIONS, Session)
        self.replies = {row.key: row for row in self._replies.rows}
        self.likelihoods = {(row.key, row.given): row for row in self._likelihoods.rows}

    @property
    def sessions(self) -> list[Session]:
        return self._sessions.rows

    def add_reply(self, row: Reply) -> None:
        self._replies.append(row)
        self.replies[row.key] = row

    def add_likelihood(self, row: Likelihood) -> None:
        self._likelihoods.append(row)
        self.likelihoods[row.key, row.given] = row

    def add_session(self, row: Session) -> None:
        self._sessions.append(row)
