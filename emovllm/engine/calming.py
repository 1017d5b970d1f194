"""Guards that calm: what they add to a request while its last readings of a label were above their bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emovllm.engine.arrays import Array, Arrays, Rings, Shape


class Calm(NamedTuple):
    """A guard that calms: while a label was read above `bound` for `tokens` tokens in a row, a request has none of its
    own emotion, and `against` in its place.

    label: the probe's. against: by column of the coefficients.
    """

    label: int
    bound: float
    tokens: int
    against: dict[int, float]

    def counts(self, read: np.ndarray, tokens: int, span: int) -> np.ndarray:
        """How many readings in a row were above the bound, at each token of a reply.

        Args:
            read: float32 [n], the label's probability where each was written, as far as it is known.
        Returns: int [tokens].
        """
        counts = np.zeros(tokens, np.int64)
        for token in range(span, tokens):
            counts[token] = counts[token - 1] + 1 if read[token - span] > np.float32(self.bound) else 0
        return counts


class Calming:
    """Of requests, by slot. against: what each guard adds, float32 [guards, columns]."""

    def __init__(self, calms: Sequence[Calm], columns: int, arrays: Arrays, shape: Shape) -> None:
        self._calms, self._arrays, self._shape = calms, arrays, shape
        self.against = np.zeros((len(calms), columns), np.float32)
        for row, calm in zip(self.against, calms, strict=True):
            row[list(calm.against)] = list(calm.against.values())
        self._against = arrays.moved(self.against)
        self._labels = arrays.moved(np.array([calm.label for calm in calms]))
        self._bounds = arrays.moved(np.array([calm.bound for calm in calms], np.float32))
        self._tokens = arrays.moved(np.array([calm.tokens for calm in calms]))
        self._counts = Rings(arrays, shape.slots, shape.ring, "int64", (len(calms),))
        self._read = arrays.zeros((shape.slots * shape.tokens, len(calms)))

    def grow(self) -> None:
        """Twice the slots."""
        self._counts.grow()
        self._read = self._arrays.grown(self._read)

    @property
    def arrays(self) -> list[Array]:
        """All that it keeps."""
        return [self._against, self._labels, self._bounds, self._tokens, self._counts.values, self._read]

    def join(self, slot: int, first: int, replied: int) -> np.ndarray:
        """Of a request that has so many tokens of a reply, the first at position `first`: which guards calm each of
        them and the next one. Returns: bool [replied + 1, guards]."""
        begin = slot * self._shape.tokens
        read = self._arrays.fetched(self._read[begin : begin + replied])
        columns = [calm.counts(read[:, row], replied + 1, self._shape.span) for row, calm in enumerate(self._calms)]
        counts = np.stack(columns, 1)
        self._counts.put(slot, counts, first)
        return counts >= [calm.tokens for calm in self._calms]

    def note(self, places: Array, read: Array) -> None:
        """What was read in a forward. places: int [n], of what `join` keeps; read: float32 [n, labels]."""
        self._read[places] = read[:, self._labels]

    def apply(self, values: Array, before: Array, here: Array, place: Array, history: Array) -> Array:
        """The coefficients of one token each, [n, columns], where guards calm it what they add.

        Args: int [n]: of the ring, the token before and this one; the place of what was read, below 0 for none yet; of
            the readings, the slot's first.
        """
        over = self._read[history + place.clip(min=0)] > self._bounds
        old = self._counts.values[before]
        counts = self._arrays.where((place >= 0)[:, None], self._arrays.where(over, old + 1, 0), old)
        self._counts.values[here] = counts
        calmed = counts >= self._tokens
        added = (calmed[:, :, None] * self._against).sum(1)
        return self._arrays.where(calmed.any(1)[:, None], added, values)
