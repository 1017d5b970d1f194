"""Emotional replies to learn from: user messages, each with a reply in every emotion."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from emovllm.errors import ExamplesError
from emovllm.spec import EmotionName
from emovllm_offline.storage.json_lines import Id, read_json_lines
from emovllm_offline.storage.places import DATA

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
DEFAULT = "replies"
_PACKAGED = DATA / "replies.jsonl"


class Example(BaseModel):
    """One line: what a user says, and what to reply in each emotion. held_out: not to learn from, but to measure by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[Id, Field(min_length=1, pattern=r"\S")]
    user: Text
    replies: dict[EmotionName, Text] = Field(min_length=1)
    held_out: bool = False


def load_examples(source: str | Path = DEFAULT) -> list[Example]:
    """Reads the packaged replies (`replies`) or a file of JSON lines; blank lines are skipped.

    Raises: ExamplesError, naming the file and the line.
    """
    path = _PACKAGED if str(source) == DEFAULT else Path(source)
    found: dict[str, Example] = {}
    for number, example in read_json_lines(path, Example, ExamplesError):
        if example.id in found:
            raise ExamplesError(f"{path}, line {number}: {example.id} is there twice")
        found[example.id] = example
    if not found:
        raise ExamplesError(f"{path}: no replies in it")
    return list(found.values())


def require_emotions(examples: Sequence[Example], emotions: Sequence[str]) -> None:
    """Raises: ExamplesError where an example lacks a reply in one of them."""
    for example in examples:
        if missing := [name for name in emotions if name not in example.replies]:
            raise ExamplesError(
                f"{example.id} has no reply in {', '.join(missing)}: give --replies with one in every emotion of the "
                "circuit"
            )


def digest(examples: Sequence[Example]) -> str:
    return hashlib.sha256("\n".join(example.model_dump_json() for example in examples).encode()).hexdigest()
