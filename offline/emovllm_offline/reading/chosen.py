"""The texts that a probe is measured on, as the model reads them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emovllm.errors import DataError
from emovllm_offline.data.texts import Text
from emovllm_offline.reading.corpus import draw, reason_left_out
from emovllm_offline.reading.prompts import Read, unread


@dataclass(frozen=True, slots=True)
class Chosen:
    """Texts of one label each, and how each is read. left_out: how many texts were left out, by the reason."""

    texts: tuple[Text, ...]
    reads: tuple[Read, ...]
    left_out: dict[str, int]

    @property
    def groups(self) -> list[str]:
        return [text.group for text in self.texts]

    def label(self, labels: Sequence[str]) -> np.ndarray:
        """The place of each text's label, [texts]."""
        return np.array([labels.index(text.labels[0]) for text in self.texts])

    def digest(self) -> str:
        """sha256 over texts, labels and groups."""
        rows = [(text.text, text.labels, text.group) for text in self.texts]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def draw_texts(
    texts: Sequence[Text], labels: Sequence[str], limit: int | None, seed: int, evenly: bool = False
) -> tuple[list[Text], dict[str, int]]:
    """About `limit` of the texts that have one label, and one of these; and how many had not, by the reason.

    evenly: as in `draw`. Raises: DataError where none has.
    """
    reasons = [reason_left_out(text, labels) for text in texts]
    kept = [text for text, reason in zip(texts, reasons, strict=True) if reason is None]
    if not kept:
        raise DataError(f"no text has one label of the probe, and no other; its labels are {', '.join(labels)}")
    return draw(kept, limit, seed, evenly), dict(Counter(reason for reason in reasons if reason is not None))


def readable(
    texts: Sequence[Text],
    reads: Sequence[Read],
    most: int,
    left_out: dict[str, int],
    remedy: str = "give others, or a larger --max-tokens",
) -> Chosen:
    """The texts of at most so many tokens. remedy: what to do where there are none. Raises: DataError then."""
    reasons = [unread(read, most) for read in reads]
    kept = [place for place, reason in enumerate(reasons) if reason is None]
    if not kept:
        raise DataError(f"no text has a token, and at most {most}: {remedy}")
    counted = Counter(reason for reason in reasons if reason is not None)
    return Chosen(tuple(texts[place] for place in kept), tuple(reads[place] for place in kept), {**left_out, **counted})
