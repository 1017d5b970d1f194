"""Rows of numbers that come one by one and are too many for JSON or for memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


class Rows:
    """A file of float32 rows of one size, appended to. What an interruption left of a last row is cut off."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        path.touch()
        self.count = 0
        self.keep(path.stat().st_size // (4 * size))

    def append(self, row: np.ndarray) -> None:
        """row: float32 [size]."""
        with self.path.open("ab") as file:
            file.write(row.tobytes())
        self.count += 1

    def keep(self, count: int) -> None:
        """Cuts the file to its first `count` rows."""
        os.truncate(self.path, count * 4 * self.size)
        self.count = count

    def read(self) -> np.ndarray:
        """All rows, mapped from disk: [count, size]."""
        return np.memmap(self.path, np.float32, "r", shape=(self.count, self.size))
