"""What a model is asked to see what an emotion costs: each item with what a right answer is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from emovllm.errors import DataError
from emovllm_offline.storage.json_lines import Id, read_json_lines
from emovllm_offline.storage.places import DATA

PACKAGED = DATA / "side_effects.jsonl"

_Filled = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Check(BaseModel):
    """What the reply is to be; exactly one of these.

    says: it has one of these words. number: the first number that is not in the question. answer: what the first
    sentence that begins with yes or no begins with. refused: whether it declines to do what it is asked. words, lines,
    items: how many it has, and nothing else; items have commas between. keys: it is a JSON object with these. capitals:
    it has no small letter.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    says: Annotated[tuple[_Filled, ...], Field(min_length=1)] | None = None
    number: float | None = None
    answer: Literal["yes", "no"] | None = None
    refused: bool | None = None
    words: Annotated[int, Gt(0)] | None = None
    lines: Annotated[int, Gt(0)] | None = None
    items: Annotated[int, Gt(0)] | None = None
    keys: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    capitals: Literal[True] | None = None

    @model_validator(mode="after")
    def _one(self) -> Check:
        if len(self.model_fields_set) != 1 or getattr(self, self.kind) is None:
            raise ValueError(f"name exactly one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def kind(self) -> str:
        return next(iter(self.model_fields_set), "says")


class Item(BaseModel):
    """kind: of items that are counted together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Id
    kind: _Filled
    user: _Filled
    check: Check


def load_items(path: str | Path | None = None, limit: int | None = None) -> list[Item]:
    """The packaged items, or JSON lines {id, kind, user, check}; of each kind the first `limit`.

    Raises: DataError, naming the file and the line.
    """
    path = PACKAGED if path is None else Path(path)
    items = [item for _, item in read_json_lines(path, Item, DataError)]
    if len({item.id for item in items}) < len(items):
        raise DataError(f"{path}: two items have the same id")
    first = {item.id for of_kind in by_kind(items).values() for item in of_kind[:limit]}
    if not first:
        raise DataError(f"{path}: no items in it")
    return [item for item in items if item.id in first]


def by_kind(items: Sequence[Item]) -> Mapping[str, list[Item]]:
    """The items of each kind, in the order in which they first come."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.kind, []).append(item)
    return groups


def items_digest(items: Sequence[Item]) -> str:
    """sha256 of what is asked, and of what is right."""
    return hashlib.sha256("\n".join(item.model_dump_json(exclude_unset=True) for item in items).encode()).hexdigest()
