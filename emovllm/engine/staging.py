"""From the host's arrays to a tensor on the device, before each forward and without waiting for the one that runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The next step is prepared while one runs; one more, so that a buffer's copy is long done when its turn comes again.
_BUFFERS = 3


class Staging:
    """Copies rows to `target`, [rows, columns], by buffers on the host that take turns.

    They are page-locked where the device is a GPU, which takes milliseconds: so they are made once, at start-up.
    """

    def __init__(self, target: Tensor, event: Callable[[], Any] | None = None) -> None:
        """event: what tells that a copy is done; by default CUDA's, and nothing on a CPU, whose copies are done when
        they return."""
        on_gpu = target.device.type == "cuda"
        if event is None and on_gpu:
            event = torch.cuda.Event
        self._target = target
        self._buffers = [torch.zeros(target.shape, dtype=target.dtype, pin_memory=on_gpu) for _ in range(_BUFFERS)]
        self._arrays = [buffer.numpy() for buffer in self._buffers]
        self._copied = [event() if event else None for _ in range(_BUFFERS)]
        # Rows that are not zero, of each buffer and of the target.
        self._filled = [np.zeros(0, np.int64)] * _BUFFERS
        self._written = np.zeros(0, np.int64)
        self._turn = 0

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Makes `values`, [n, columns], the rows `rows` of the target, int [n], and zero the others."""
        if not len(rows) and not len(self._written):
            return
        turn = self._turn
        self._turn = (turn + 1) % _BUFFERS
        if (copied := self._copied[turn]) is not None:
            copied.synchronize()
        array = self._arrays[turn]
        array[self._filled[turn]] = 0
        array[rows] = values
        self._filled[turn] = rows
        total = int(max(rows.max(initial=-1), self._written.max(initial=-1))) + 1
        self._target[:total].copy_(self._buffers[turn][:total], non_blocking=True)
        if copied is not None:
            copied.record()
        self._written = rows
