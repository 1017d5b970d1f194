"""95% confidence intervals: Wilson's for shares, the bootstrap's and Student's t for means.

SciPy is imported where it computes: commands answer `--help` without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
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
    from scipy.stats import binomtest

    if count == 0:
        return None
    interval = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return Estimate(hits / count, float(interval.low), float(interval.high), count)


def bootstrap(
    values: Sequence[float], statistic: Callable[..., np.ndarray] = np.mean, seed: int = 0
) -> Estimate | None:
    """A mean (or median) with its percentile bootstrap interval; None of nothing.

    statistic: of numpy, called with `axis`.
    """
    from scipy import stats

    sample = np.asarray(values, np.float64)
    if len(sample) == 0:
        return None
    value = float(statistic(sample, axis=0))
    if len(sample) == 1:
        return Estimate(value, value, value, 1)
    interval = stats.bootstrap(
        (sample,),
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, _CHUNK // len(sample)),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high), len(sample))


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and interval over the first axis, by Student's t: [n, ...] to three of [...], n >= 2."""
    from scipy import stats

    mean = values.mean(0)
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return mean, mean - half, mean + half


def by_group(values: Sequence[float] | np.ndarray, groups: Sequence[str], seed: int = 0) -> Estimate:
    """A mean with its percentile bootstrap interval, of which whole groups are drawn: their members are no independent
    evidence. A share of values that are each a group of their own has Wilson's interval, where they are 0 and 1.

    Raises: ValueError where there are no values.
    """
    sample = np.asarray(values, np.float64)
    if len(sample) == 0 or len(sample) != len(groups):
        raise ValueError(f"{len(sample)} values, {len(groups)} groups")
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) == len(sample) and set(np.unique(sample)) <= {0.0, 1.0}:
        share = wilson(int(sample.sum()), len(sample))
        assert share is not None
        return share
    sums = np.bincount(place, sample)
    sizes = np.bincount(place)
    drawn = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(sample.mean()), float(low), float(high), len(sample))
