"""From texts to token ids, and the positions at which their states are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emovllm.probe import Pooling
from emovllm_offline.data.prompts import render
from emovllm_offline.data.styles import Frame


@dataclass(frozen=True, slots=True)
class Read:
    """A text as the model reads it. positions: those whose states count (their mean); none where the text has no
    token."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]


def read_of(tokenizer: Any, text: str, pooling: Pooling, chat: bool) -> Read:
    """A text as it is, with what the tokenizer puts before any, or as a user's message up to where the reply begins.

    pooling: `mean` is over the text's own tokens; of no chat. Raises: PromptError.
    """
    if chat:
        prompt = render(tokenizer, Frame(), text)
        return Read(prompt.ids, tuple(prompt.positions))
    encoded = tokenizer(text, return_special_tokens_mask=True)
    ids = tuple(encoded["input_ids"])
    own = tuple(place for place, special in enumerate(encoded["special_tokens_mask"]) if not special)
    return Read(ids, own if pooling == "mean" else own[-1:])


def reads_of(tokenizer: Any, texts: Sequence[str], pooling: Pooling, chat: bool) -> list[Read]:
    """Raises: as `read_of`."""
    return [read_of(tokenizer, text, pooling, chat) for text in texts]


def unread(text: Read, most: int) -> str | None:
    """Why a text cannot be read; None where it can."""
    if not text.positions:
        return "no token"
    return f"more than {most} tokens" if len(text.ids) > most else None
