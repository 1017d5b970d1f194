"""Texts with the emotions that people say they show: JSON lines, or the table of GoEmotions."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from emovllm.errors import DataError
from emovllm.files import read_text
from emovllm_offline.data.texts import SYNONYMS
from emovllm_offline.storage.json_lines import Id, read_json_lines
from emovllm_offline.storage.places import JUDGES

_LABELS = "labels.txt"
# Packaged texts by name: replies of models, of several registers (docs/results/judges.md tells who labelled them).
PACKAGED = {"replies": JUDGES / "replies.jsonl"}

Label = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Labelled(BaseModel):
    """A text. label: one or several, by people or by how the text was made.

    group: texts of one group are no independent evidence (one scenario, one author). register_: the kind of text; in
    files `register`, which is the name of a method of every class of pydantic's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Annotated[str, Field(min_length=1, pattern=r"\S")]
    label: tuple[Label, ...] = Field(min_length=1)
    group: Id | None = None
    register_: str | None = Field(default=None, alias="register")

    @field_validator("label", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


def load_labelled(path: str | Path) -> list[Labelled]:
    """Reads packaged texts by their name (`PACKAGED`), or JSON lines {text, label, group?, register?}, or a .tsv as
    GoEmotions has them: text, ids of labels with commas between, id; what the ids stand for is told by a file
    labels.txt beside it, a name a line. A text without a register has the file's name for one.

    Raises: DataError, naming the file and the line.
    """
    path = PACKAGED.get(str(path), Path(path))
    rows = list(
        _table(path) if path.suffix == ".tsv" else (row for _, row in read_json_lines(path, Labelled, DataError))
    )
    if not rows:
        raise DataError(f"{path}: no texts in it")
    return [_named(row, path.stem) for row in rows]


def _named(row: Labelled, register: str) -> Labelled:
    label = tuple(SYNONYMS.get(name, name) for name in row.label)
    return row.model_copy(update={"label": label, "register_": row.register_ or register})


def _table(path: Path) -> Iterator[Labelled]:
    text = read_text(path, DataError)
    names = read_text(path.with_name(_LABELS), DataError).split()
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE), 1):
        if not row:
            continue
        try:
            label = tuple(names[int(place)] for place in row[1].split(","))
            yield Labelled(text=row[0], label=label)
        except (IndexError, ValueError):
            raise DataError(
                f"{path}, line {number}: expected a text, ids of labels with commas between (each a line of "
                f"{_LABELS}, from 0) and an id, with tabs between"
            ) from None


def draw(rows: list[Labelled], limit: int | None) -> list[Labelled]:
    """`limit` of the texts at random, the same each time, in their order; all where there are no more."""
    if limit is None or limit >= len(rows):
        return rows
    chosen = np.random.default_rng(0).choice(len(rows), limit, replace=False)
    return [rows[i] for i in sorted(chosen)]


def by_register(rows: Sequence[Labelled]) -> Mapping[str, list[Labelled]]:
    """The texts of each register, in the order in which they first come."""
    groups: dict[str, list[Labelled]] = {}
    for row in rows:
        groups.setdefault(row.register_ or "", []).append(row)
    return groups
