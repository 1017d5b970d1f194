"""Which tokens of a batch are injected, by the positions that their requests give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Injected(NamedTuple):
    """The injected tokens of a forward, [n].

    rows: of the batch; slots: of their requests; places: which token of its request's in this forward each is, int.
    values: float32 [n, columns], their coefficients but for what changes in time. last: int, the position of the last
    token of their prompts.
    """

    rows: np.ndarray
    slots: np.ndarray
    places: np.ndarray
    values: np.ndarray
    last: np.ndarray


def injected_tokens(
    starts: np.ndarray, num_scheduled: np.ndarray, num_computed: np.ndarray, first: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a batch that are injected, and the request of each.

    Args: int [requests]: the index of each request's first token in the batch, and as in `Coefficients.update`; first
        and last position injected.
    Returns: int [tokens], int [tokens].
    """
    low = np.maximum(first, num_computed)
    high = np.minimum(last, num_computed + num_scheduled - 1)
    counts = np.maximum(high - low + 1, 0)
    which = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return (starts + low - num_computed)[which] + within, which


def by_slot(slots: np.ndarray, tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each slot that some tokens are of, with its own; int [n], bool [n]."""
    for slot in np.unique(slots[tokens]).tolist() if tokens.any() else ():
        yield slot, np.flatnonzero(tokens & (slots == slot))
