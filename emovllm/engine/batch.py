"""Which token of a batch gets which emotion: the position rule, and the buffer that the compiled graph reads.

A token at absolute position p of its request is injected when p >= prompt_len - 1 (scope `generation`: what "the last
token of every forward" means without a cache, paging or chunks), when p == prompt_len - 1 (`prompt_last`), or always
(`all`). Only the position and the original prompt length count, so chunked prefill, recomputation after preemption
and speculative decoding all give the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

_NEVER = np.iinfo(np.int64).max


class Coefficients:
    """`buffer`: float32 [max_tokens, emotions] on the device; its address never changes."""

    def __init__(self, names: Sequence[str], max_tokens: int, device: torch.device) -> None:
        self.buffer = torch.zeros(max_tokens, len(names), dtype=torch.float32, device=device)
        self._column = {name: column for column, name in enumerate(names)}
        self._req_ids: list[str] = []
        self._weights = np.zeros((0, len(names)), np.float32)  # [requests, emotions]
        self._first = np.zeros(0, np.int64)  # [requests], first position injected
        self._last = np.zeros(0, np.int64)  # [requests], last position injected
        self._steered = False
        self._decoding = False
        self._written = 0

    def update(
        self,
        req_ids: Sequence[str],
        wire_of: Callable[[str], Mapping[str, Any] | None],
        num_scheduled: np.ndarray,
        num_computed: np.ndarray,
        num_prompt: np.ndarray,
        has_new: bool,
    ) -> None:
        """Prepares the buffer for the next forward.

        Args:
            req_ids: the batch's requests in order; the arrays below, int [requests], follow it.
            wire_of: a request's resolved emotion (`Emotion.to_wire`), or None.
            num_scheduled: tokens of each request in this forward.
            num_computed: tokens computed before it, so that the first one's position is this.
            num_prompt: the ORIGINAL prompt length; generated tokens recomputed after preemption stay generated.
            has_new: whether a request joined since the last call.
        """
        changed = has_new or self._req_ids != req_ids
        if changed:
            self._compose(req_ids, wire_of, num_prompt)
        if not self._steered:
            if self._written:
                self.buffer[: self._written].zero_()
                self._written = 0
            return
        # One generated token each: where that was so in the last forward too, every row is as it was.
        decoding = bool((num_scheduled == 1).all() and (num_computed >= num_prompt).all())
        if decoding and self._decoding and not changed:
            return
        self._decoding = decoding
        self._write(num_scheduled, num_computed)

    def _compose(
        self, req_ids: Sequence[str], wire_of: Callable[[str], Mapping[str, Any] | None], num_prompt: np.ndarray
    ) -> None:
        self._req_ids = list(req_ids)
        self._decoding = False
        count = len(req_ids)
        self._weights = np.zeros((count, len(self._column)), np.float32)
        self._first = np.full(count, _NEVER)
        self._last = np.full(count, _NEVER)
        self._steered = False
        for row, req_id in enumerate(req_ids):
            wire = wire_of(req_id)
            if wire is None:
                continue
            self._steered = True
            for name, weight in wire["weights"].items():
                self._weights[row, self._column[name]] = weight
            self._first[row] = 0 if wire["scope"] == "all" else num_prompt[row] - 1
            if wire["scope"] == "prompt_last":
                self._last[row] = num_prompt[row] - 1

    def _write(self, num_scheduled: np.ndarray, num_computed: np.ndarray) -> None:
        rows, injected = token_rows(num_scheduled, num_computed, self._first, self._last)
        total = len(rows)
        values = np.where(injected[:, None], self._weights[rows], np.float32(0))
        self.buffer[:total].copy_(torch.from_numpy(values), non_blocking=True)
        if self._written > total:
            self.buffer[total : self._written].zero_()
        self._written = total


def token_rows(
    num_scheduled: np.ndarray, num_computed: np.ndarray, first: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each token of a batch, its request's row (int [tokens]) and whether it is injected (bool [tokens])."""
    rows = np.repeat(np.arange(len(num_scheduled)), num_scheduled)
    starts = np.cumsum(num_scheduled) - num_scheduled
    positions = np.arange(len(rows)) - starts[rows] + num_computed[rows]
    return rows, (positions >= first[rows]) & (positions <= last[rows])
