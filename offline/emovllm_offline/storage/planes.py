"""Arrays that are too large for memory, on disk: filled a few rows at a time, and read a plane at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emovllm.errors import CheckpointError
from emovllm.files import write_json
from emovllm_offline.storage.settings import plain, read_settings, refuse_others

_REMEDY = "start anew with --fresh, or give another --work"
# Of the file beside the planes.
_SETTINGS = "made of"
_DONE = "rows done"


class Planes:
    """A file of float32 [planes, rows, width], and one of what it is made of and how many rows it holds.

    Rows are written in order, in all planes. After an interruption those are there that were flushed.
    """

    def __init__(
        self, path: Path, shape: tuple[int, int, int], settings: Mapping[str, Any], *, seconds: float = 20.0
    ) -> None:
        """settings: JSON values; rows made of others are refused. seconds: at most as often are rows flushed.

        Raises: CheckpointError, OSError.
        """
        self.path = path
        self.shape = shape
        self.settings = plain(settings)
        self._seconds = seconds
        self._beside = path.with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.done = self._resume()
        # What is written goes through the file, not a map of it: a full disk is then an error that can be told.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        self._flushed = time.monotonic()

    def _resume(self) -> int:
        before = read_settings(self._beside, _REMEDY)
        if before is None:
            return 0
        refuse_others(self.path, before.get(_SETTINGS) or {}, self.settings, _REMEDY, CheckpointError)
        done = before.get(_DONE)
        if not isinstance(done, int) or not 0 <= done <= self.shape[1] or not self.path.exists():
            raise CheckpointError(f"{self.path}: damaged; {_REMEDY}")
        return done

    def append(self, rows: np.ndarray) -> None:
        """rows: [planes, n, width], the next n of each plane. Raises: OSError, such as a full disk's."""
        planes, count, width = self.shape
        rows = np.ascontiguousarray(rows, np.float32)
        if rows.shape[0] != planes or rows.shape[2] != width or self.done + rows.shape[1] > count:
            raise ValueError(f"rows {rows.shape} after {self.done} of {self.shape}")
        for plane, values in enumerate(rows):
            _write(self._file, values.tobytes(), 4 * width * (plane * count + self.done))
        self.done += rows.shape[1]
        if self.done == count or time.monotonic() - self._flushed >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Makes the rows that were appended last."""
        os.fsync(self._file)
        write_json(self._beside, {_SETTINGS: self.settings, _DONE: self.done})
        self._flushed = time.monotonic()

    def plane(self, number: int) -> np.ndarray:
        """One plane in memory, [rows, width]; all rows are there. Raises: CheckpointError."""
        _, count, width = self.shape
        if self.done < count:
            raise ValueError(f"{self.done} of {count} rows are there")
        values = np.fromfile(self.path, np.float32, count * width, offset=4 * width * count * number)
        if len(values) != count * width:
            raise CheckpointError(f"{self.path}: cut short; {_REMEDY}")
        return values.reshape(count, width)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Planes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _write(file: int, data: bytes, place: int) -> None:
    """Not all may be written at once. Raises: OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written
