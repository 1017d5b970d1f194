"""The memory of a server's processes over time, and whether it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil

_RESAMPLES = 2000
_BLOCKS = 12


@dataclass(slots=True)
class Memory:
    """Resident memory of a process and all below it, MiB, as sampled; `parts` by process."""

    pid: int
    seconds: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)

    def sample(self, second: float) -> None:
        root = psutil.Process(self.pid)
        total = 0.0
        for process in (root, *root.children(recursive=True)):
            try:
                mib = process.memory_info().rss / 2**20
                name = "front end" if process == root else process.name()
            except psutil.NoSuchProcess:
                continue
            total += mib
            self.parts.setdefault(f"{name} {process.pid}", []).append(round(mib, 2))
        self.seconds.append(round(second, 2))
        self.mib.append(round(total, 2))


@dataclass(frozen=True, slots=True)
class Slope:
    """MiB per minute, with a 95% interval."""

    mean: float
    low: float
    high: float


def slope(seconds: Sequence[float], mib: Sequence[float], after: float, seed: int = 0) -> Slope:
    """The growth after `after` seconds: least squares, with a bootstrap over blocks of residuals that follow one
    another, as samples of memory are anything but independent. Raises: ValueError with fewer than six samples."""
    x, y = (np.asarray(values, float) for values in (seconds, mib))
    x, y = x[np.asarray(seconds) >= after] / 60, y[np.asarray(seconds) >= after]
    if len(x) < 6:
        raise ValueError(f"{len(x)} samples of memory are too few for a slope")
    mean, offset = np.polyfit(x, y, 1)
    residuals = y - (mean * x + offset)
    length = max(1, len(x) // _BLOCKS)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(_RESAMPLES):
        starts = rng.integers(0, len(x) - length + 1, -(-len(x) // length))
        moved = np.concatenate([residuals[start : start + length] for start in starts])[: len(x)]
        drawn.append(np.polyfit(x, mean * x + offset + moved, 1)[0])
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Slope(float(mean), float(low), float(high))
