"""Texts as users' messages below a system prompt, and where in the chat they are read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from emovllm.probe import Pooling
from emovllm_offline.data.prompts import render
from emovllm_offline.data.styles import Frame
from emovllm_offline.reading.prompts import Read

# The prompt's last token, at which the reply begins; or the message's own tokens.
At = Literal["reply", "text"]
# Messages that neither begin nor end alike: what both chats have in common is not theirs.
_OTHERS = ("a", "'1")


class Chats:
    """Chats below one system prompt, or none."""

    def __init__(self, tokenizer: Any, system: str | None) -> None:
        """Raises: PromptError where the chat template refuses the prompt, or leaves it out."""
        self._tokenizer = tokenizer
        self._frame = Frame(system=system)
        self._others = [render(tokenizer, self._frame, text).ids for text in _OTHERS]

    def read(self, text: str, at: At, pooling: Pooling) -> Read:
        """pooling: of the message's own tokens. No position where it has none of its own."""
        ids = render(self._tokenizer, self._frame, text).ids
        if at == "reply":
            return Read(ids, (len(ids) - 1,))
        begin = min(_common(zip(ids, other, strict=False)) for other in self._others)
        end = len(ids) - min(_common(zip(ids[::-1], other[::-1], strict=False)) for other in self._others)
        own = tuple(range(begin, end))
        return Read(ids, own if pooling == "mean" else own[-1:])


def _common(pairs: Iterable[tuple[int, int]]) -> int:
    """How many pairs are equal before the first that is not."""
    count = 0
    for one, other in pairs:
        if one != other:
            break
        count += 1
    return count
