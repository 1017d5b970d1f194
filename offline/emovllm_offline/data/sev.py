"""SEV: everyday scenarios, each with a positive, a neutral and a negative event (arXiv 2510.11328, section 3)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from emovllm.errors import DataError
from emovllm.files import read_text
from emovllm_offline.storage.json_lines import Id, parse_json_lines
from emovllm_offline.storage.places import DATA

Valence = Literal["positive", "neutral", "negative"]
VALENCES: tuple[Valence, ...] = get_args(Valence)
Text = Annotated[str, Field(min_length=1)]

WORDS_PER_SENTENCE = (15, 25)
# The three events of a scenario are to be the same sentence but for the outcome.
LEAST_OVERLAP = 0.35


class Events(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    positive: Text
    neutral: Text
    negative: Text


class Record(BaseModel):
    """One line of a SEV file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    skeleton_id: Annotated[Id, Field(min_length=1)]
    theme: Text
    scenario: Text
    event: Events


@dataclass(frozen=True, slots=True)
class Item:
    """One scenario with one of its events: what a user tells the model."""

    id: str
    theme: str
    valence: Valence
    user: str


# Packaged data sets by name: file, and which of its scenarios. The themes take turns in a file, so that any part of it
# is balanced. What learns, learns from scenarios of `sev-train` (`sev-small` is in it); what chooses, by those of
# `sev-dev`.
PACKAGED: dict[str, tuple[str, slice]] = {
    "sev-small": ("sev.jsonl", slice(40)),
    "sev-train": ("sev.jsonl", slice(120)),
    "sev-dev": ("sev.jsonl", slice(120, None)),
    "sev": ("sev.jsonl", slice(None)),
    "sev-test": ("sev_test.jsonl", slice(None)),
}
DEFAULT = "sev-small"


def load_sev(source: str | Path = DEFAULT) -> list[Record]:
    """Reads a packaged data set by its name (`PACKAGED`), or a SEV file (JSON lines; blank lines are skipped).

    Raises: DataError, naming the file and the line.
    """
    name, part = PACKAGED.get(str(source), (None, slice(None)))
    path = Path(source) if name is None else DATA / name
    return parse_sev(path, read_text(path, DataError))[part]


def parse_sev(path: Path, text: str) -> list[Record]:
    """The records of a text that was read from `path`. Raises: DataError, naming the file and the line."""
    records: dict[str, Record] = {}
    for number, record in parse_json_lines(path, text, Record, DataError):
        if record.skeleton_id in records:
            raise DataError(f"{path}, line {number}: skeleton_id {record.skeleton_id!r} was used before")
        records[record.skeleton_id] = record
    if not records:
        raise DataError(f"{path}: has no records")
    return list(records.values())


def expand(records: Iterable[Record]) -> list[Item]:
    """The scenario-event pairs, scenario by scenario; the user message is the scenario, a newline, the event."""
    return [
        Item(
            f"{record.skeleton_id}.{valence}",
            record.theme,
            valence,
            f"{record.scenario}\n{getattr(record.event, valence)}",
        )
        for record in records
        for valence in VALENCES
    ]


def digest(records: Iterable[Record]) -> str:
    """sha256 of the records themselves: the same for any file name and layout."""
    return hashlib.sha256("\n".join(record.model_dump_json() for record in records).encode()).hexdigest()


def check_sev(records: Sequence[Record]) -> list[str]:
    """What a careful reader would object to in a data set; empty when it is sound.

    Checks the length of every sentence, emotion words, non-ASCII characters, sentences used twice, and that the
    events of a scenario are small variations of one another (Jaccard similarity of their words).
    """
    reader = CarefulReader()
    complaints = []
    for record in records:
        complaints += [f"{record.skeleton_id}{complaint}" for complaint in reader.complaints(record)]
        reader.remember(record)
    return complaints


class CarefulReader:
    """Objects to one record after the other, and remembers the sentences of those that are in the data set."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._forbidden = emotion_words()
        self._known: dict[str, str] = {}
        for record in records:
            self.remember(record)

    def remember(self, record: Record) -> None:
        self._known |= {sentence: f"{record.skeleton_id}.{part}" for part, sentence in _sentences(record).items()}

    def complaints(self, record: Record) -> list[str]:
        """As `check_sev`, each without the record's id before it."""
        sentences = _sentences(record)
        complaints = []
        own: dict[str, str] = {}
        for part, sentence in sentences.items():
            complaints += [f".{part}: {what}" for what in _sentence_faults(sentence, self._forbidden)]
            if place := own.get(sentence) or self._known.get(sentence):
                complaints.append(f".{part}: the same sentence as {place}")
            own[sentence] = f"{record.skeleton_id}.{part}"
        for one, other in combinations(VALENCES, 2):
            overlap = _jaccard(sentences[one], sentences[other])
            if overlap < LEAST_OVERLAP:
                complaints.append(f": {one} and {other} share too few words ({overlap:.2f})")
        return complaints


def _sentences(record: Record) -> dict[str, str]:
    return {"scenario": record.scenario} | {valence: getattr(record.event, valence) for valence in VALENCES}


def emotion_words() -> frozenset[str]:
    """Words that name or show an emotion: a sentence of SEV may not have them, it tells what happened."""
    return frozenset((DATA / "emotion_words.txt").read_text(encoding="ascii").split())


def _sentence_faults(sentence: str, emotion_words: frozenset[str]) -> list[str]:
    faults = []
    least, most = WORDS_PER_SENTENCE
    if not least <= len(sentence.split()) <= most:
        faults.append(f"{len(sentence.split())} words, expected {least} to {most}")
    if found := sorted(set(words(sentence)) & emotion_words):
        faults.append(f"emotion words: {', '.join(found)}")
    if not sentence.isascii():
        faults.append("has characters that are not ASCII")
    return faults


def words(text: str) -> list[str]:
    """In lower case, in their order."""
    return re.findall(r"[a-z0-9']+", text.lower())


def _jaccard(one: str, other: str) -> float:
    a, b = set(words(one)), set(words(other))
    return len(a & b) / len(a | b)
