"""The data of a build: scenarios to learn from, messages to choose strengths by, and messages that neither has seen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emovllm.errors import BuildError
from emovllm.files import write_atomically
from emovllm_offline.data import sev
from emovllm_offline.data.examples import Example
from emovllm_offline.data.messages import Message
from emovllm_offline.data.sev import VALENCES, Record
from emovllm_offline.judges.sentences import LABELS, load_sentences

# Of a user's own scenarios, of each five one chooses and one tests.
EVERY = 5
LEAST = 15


@dataclass(frozen=True, slots=True)
class Parts:
    """Scenarios, none of them in two parts. own: whether they are the user's."""

    learn: Sequence[Record]
    choose: Sequence[Record]
    test: Sequence[Record]
    own: bool


def load_parts(data: str | None) -> Parts:
    """data: a file of scenarios; None for the packaged ones. Raises: DataError, BuildError where they are too few."""
    if data is None:
        return Parts(sev.load_sev("sev-train"), sev.load_sev("sev-dev"), sev.load_sev("sev-test"), own=False)
    records = sev.load_sev(data)
    if len(records) < LEAST:
        raise BuildError(
            f"--data {data}: has {len(records)} scenarios, and {LEAST} are the least of which some can be learnt from, "
            "others choose strengths and others measure; `emovllm data make` writes more"
        )
    learn = [record for at, record in enumerate(records) if at % EVERY < EVERY - 2]
    return Parts(learn, records[EVERY - 2 :: EVERY], records[EVERY - 1 :: EVERY], own=True)


def messages(records: Sequence[Record], limit: int) -> list[Message]:
    """One event of each of the first scenarios, the valences in turn: no two replies are to one scenario, so that
    intervals are Wilson's."""
    found = []
    for at, record in enumerate(records[:limit]):
        valence = VALENCES[at % len(VALENCES)]
        item = next(item for item in sev.expand([record]) if item.valence == valence)
        found.append(Message(item.id, valence, item.user))
    return found


def labelled(
    written: Sequence[Example], own: Sequence[tuple[str, str, str]], emotions: Sequence[str]
) -> list[dict[str, str]]:
    """The texts that a probe can learn from, with label and group: written replies where there are any, else the
    model's own.

    own: text, emotion and group of each accepted reply.
    """
    if not written:
        return [{"text": text, "label": name, "group": group} for text, name, group in own]
    return [
        {"text": example.replies[name], "label": name, "group": example.id} for example in written for name in emotions
    ]


def neutral_texts() -> list[dict[str, str]]:
    """English sentences that show none of the six emotions: about as many as of each there are packaged replies."""
    found = load_sentences()
    none = [text for text, label in zip(found.texts, found.labels, strict=True) if label == LABELS[-1]]
    return [{"text": text, "label": LABELS[-1], "group": text} for text in none]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """As the files that users write: a line of JSON each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
