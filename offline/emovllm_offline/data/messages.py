"""The user messages of an evaluation: SEV's scenario-event pairs, or any JSON lines with a `user`."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from emovllm.errors import DataError
from emovllm.files import read_json, read_text
from emovllm_offline.data import sev
from emovllm_offline.storage.json_lines import Id, parse_json_lines
from emovllm_offline.storage.places import DATA

TEST_SET = "sev-test"
# Another, of other messages: see `Closed`.
CLOSED = "closed"
_CLOSED_FILE = DATA / "closed.json"
# Of messages that say nothing of their own valence.
UNTOLD = "untold"


@dataclass(frozen=True, slots=True)
class Message:
    """What a user tells the model. valence: one of SEV's, or any other kind's name. group: of messages that are alike,
    such as SEV's of one scenario, whose replies are no independent evidence; empty where it has none but itself."""

    id: str
    valence: str
    user: str
    group: str = ""


class _Line(BaseModel):
    """One line of a file that is not SEV's."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    user: Annotated[str, Field(min_length=1)]
    id: Id | None = None
    valence: Annotated[Id, Field(min_length=1)] = UNTOLD
    group: Id = ""


class Opening(BaseModel):
    """When replies to the closed set were looked at or measured: of which release, model and circuit (its digest), by
    which command."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    release: str
    date: str
    model: str
    circuit: str
    command: str


class Closed(BaseModel):
    """A test set that a release is measured on once, in the end: no reply to it was seen before, and nothing was
    chosen by any. opened: each time that it was. Kinds of messages and valences take turns, so that every part is
    balanced."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    opened: tuple[Opening, ...]
    messages: tuple[_Line, ...]


def load_closed() -> Closed:
    """Raises: DataError."""
    return read_json(_CLOSED_FILE, Closed, DataError)


def load_messages(source: str | Path, limit: int | None = None) -> list[Message]:
    """Messages of a packaged data set, a SEV file, or a file with lines {"user": ..., "id": ..., "valence": ...,
    "group": ...}.

    limit: the first so many scenarios of SEV (three messages each), or lines.
    Raises: DataError, naming the file and the line.
    """
    if str(source) == CLOSED:
        return [Message(line.id or "", line.valence, line.user) for line in load_closed().messages][:limit]
    if str(source) in sev.PACKAGED:
        return _of_records(sev.load_sev(source)[:limit])
    path = Path(source)
    text = read_text(path, DataError)
    if _is_sev(text):
        return _of_records(sev.parse_sev(path, text)[:limit])
    lines = [
        Message(read.id or f"line-{number}", read.valence, read.user, read.group)
        for number, read in parse_json_lines(path, text, _Line, DataError)
    ][:limit]
    if not lines:
        raise DataError(f"{source}: has no messages")
    if len({line.id for line in lines}) < len(lines):
        raise DataError(f"{source}: two lines have the same id")
    return lines


def messages_digest(messages: Sequence[Message]) -> str:
    """Identifies what is asked, however it is grouped."""
    asked = [(message.id, message.valence, message.user) for message in messages]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def overlaps_test_set(messages: Sequence[Message]) -> bool:
    """Whether any message is of a test set, which nothing may be tuned on."""
    return not _test_messages().isdisjoint(message.user for message in messages)


@functools.cache
def _test_messages() -> frozenset[str]:
    return frozenset(message.user for name in (TEST_SET, CLOSED) for message in load_messages(name))


def _of_records(records: Sequence[sev.Record]) -> list[Message]:
    return [
        Message(item.id, item.valence, item.user, record.skeleton_id)
        for record in records
        for item in sev.expand([record])
    ]


def _is_sev(text: str) -> bool:
    """By the first line, which has fields of SEV's and no `user`."""
    try:
        first = json.loads(next((line for line in text.split("\n") if line.strip()), "{}"))
    except ValueError:
        return False
    return isinstance(first, dict) and "user" not in first and not sev.Record.model_fields.keys().isdisjoint(first)
