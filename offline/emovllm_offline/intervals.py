"""95% confidence intervals: Wilson's for shares, the bootstrap's over groups and Student's t for means.

SciPy is imported where it computes: commands answer `--help` without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

RESAMPLES = 1000


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


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and interval over the first axis, by Student's t: [n, ...] to three of [...], n >= 2."""
    from scipy import stats

    mean = values.mean(0)
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return mean, mean - half, mean + half


def by_group(
    values: Sequence[float] | np.ndarray, groups: Sequence[str], seed: int = 0, *, median: bool = False
) -> Estimate:
    """A mean, or median, with its percentile bootstrap interval, of which whole groups are drawn: their members are no
    independent evidence. Shares, of values that are 0 or 1, have Wilson's interval where each is a group of its own, or
    all are equal, then over the groups; a share in one group may be anything elsewhere.

    Raises: ValueError where there are no values.
    """
    sample = np.asarray(values, np.float64)
    if len(sample) == 0 or len(sample) != len(groups):
        raise ValueError(f"{len(sample)} values, {len(groups)} groups")
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    if not median and set(np.unique(sample)) <= {0.0, 1.0}:
        share = sample.mean()
        if len(names) == 1 < len(sample):
            return Estimate(float(share), 0.0, 1.0, len(sample))
        if len(names) == len(sample) or share in (0, 1):
            of_groups = wilson(round(share * len(names)), len(names))
            assert of_groups is not None
            return replace(of_groups, count=len(sample))
    drawn = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))
    if median:
        value, resampled = float(np.median(sample)), _medians(sample, place, drawn)
    else:
        sums, sizes = np.bincount(place, sample), np.bincount(place)
        value, resampled = float(sample.mean()), sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(value, float(low), float(high), len(sample))


def means_by_group(
    values: np.ndarray, groups: Sequence[str], seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over the first axis with their percentile bootstrap intervals, of which whole groups are drawn, the same
    for all: [n, ...] to three of [...]. Raises: ValueError where there are no values."""
    if len(values) == 0 or len(values) != len(groups):
        raise ValueError(f"{len(values)} values, {len(groups)} groups")
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    place, times = _drawn(groups, seed)
    sizes = np.bincount(place)
    sums = np.zeros((len(sizes), flat.shape[1]))
    np.add.at(sums, place, flat)
    low, high = np.quantile(times @ sums / (times @ sizes)[:, None], (0.025, 0.975), axis=0)
    shape = np.shape(values)[1:]
    return flat.mean(0).reshape(shape), low.reshape(shape), high.reshape(shape)


def times_drawn(groups: Sequence[str], seed: int = 0) -> np.ndarray:
    """How often each value is in each of the bootstrap's resamples, of which whole groups are drawn, for statistics
    that are no means: float64 [RESAMPLES, values]."""
    place, times = _drawn(groups, seed)
    return times[:, place]


def _drawn(groups: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The place of each value's group, [values], and how often each is in each resample, [RESAMPLES, groups]."""
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    drawn = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))
    return place, np.stack([np.bincount(chosen, minlength=len(names)) for chosen in drawn]).astype(np.float64)


def _medians(sample: np.ndarray, place: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Of resamples: drawn [resamples, groups] are the groups in them, place [values] each value's group."""
    order = np.argsort(sample, kind="stable")
    sample, place = sample[order], place[order]
    found = []
    for chosen in drawn:
        # How often each value is in the resample, from the least value on.
        times = np.bincount(chosen, minlength=drawn.shape[1])[place]
        reached = np.cumsum(times)
        middle = np.searchsorted(reached, [(reached[-1] + 1) // 2, reached[-1] // 2 + 1])
        found.append(sample[middle].mean())
    return np.array(found)
