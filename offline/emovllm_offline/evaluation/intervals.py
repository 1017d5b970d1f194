"""Confidence intervals: Wilson's for shares, the bootstrap's for means and medians."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
_Z = 1.959964  # of 95%
# Values that are drawn at a time.
_CHUNK = 2**22


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95% interval, over `count` replies."""

    value: float
    low: float
    high: float
    count: int


def wilson(hits: int, count: int) -> Estimate | None:
    """A share with Wilson's score interval; None of nothing."""
    if count == 0:
        return None
    share = hits / count
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), count)


def bootstrap(
    values: Sequence[float], statistic: Callable[..., np.ndarray] = np.mean, seed: int = 0
) -> Estimate | None:
    """A mean (or median) with its percentile bootstrap interval; None of nothing.

    statistic: of numpy, called with `axis`.
    """
    drawn = np.asarray(values, np.float64)
    if len(drawn) == 0:
        return None
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(drawn))
    resampled = np.concatenate(
        [
            statistic(drawn[rng.integers(0, len(drawn), (min(rows, RESAMPLES - done), len(drawn)))], axis=1)
            for done in range(0, RESAMPLES, rows)
        ]
    )
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(float(statistic(drawn, axis=0)), float(low), float(high), len(drawn))
