"""What schedules give each token of a batch: looked up, for a schedule is computed for many tokens at once."""

from __future__ import annotations

import numpy as np

from emovllm.engine.injected import by_slot
from emovllm.schedule import Schedule

# Tokens of a reply for which a schedule is computed ahead.
AHEAD = 128
# As many of them are behind the last token that was asked for: drafts may be rejected.
BEHIND = 16


class Shares:
    """Of requests, by slot. scheduled: bool [slots], which have a schedule."""

    def __init__(self, slots: int) -> None:
        self.scheduled = np.zeros(slots, bool)
        self._schedules: dict[int, Schedule] = {}
        self._table = np.zeros((slots, AHEAD), np.float32)
        self._first = np.zeros(slots, np.int64)  # token of the reply that the table begins with

    def join(self, slot: int, schedule: Schedule | None) -> None:
        self._schedules.pop(slot, None)
        self.scheduled[slot] = schedule is not None
        if schedule is not None:
            self._schedules[slot] = schedule
            self._look_ahead(slot, 0)

    def grow(self) -> None:
        """Twice the slots."""
        for name in ("scheduled", "_table", "_first"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros_like(old)]))

    def of(self, slots: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The share of its request's strength that each token gets.

        Args: int [n]: the slot of its request, which has a schedule; its place in the reply, below 0 in the prompt.
        Returns: float32 [n].
        """
        places = tokens - self._first[slots]
        beyond = places // AHEAD != 0
        shares: np.ndarray = self._table[slots, places % AHEAD]
        for slot, those in by_slot(slots, beyond):
            shares[those] = self._schedules[slot].shares(tokens[those])
            self._look_ahead(slot, max(int(tokens[those].max()) - BEHIND, 0))
        return shares

    def _look_ahead(self, slot: int, first: int) -> None:
        self._first[slot] = first
        self._table[slot] = self._schedules[slot].shares(first + np.arange(AHEAD))
