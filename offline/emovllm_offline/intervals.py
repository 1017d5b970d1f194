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


def mean_change(changes: np.ndarray) -> Estimate:
    """The mean of changes in pairs, each from -1 to 1, such as of a share (-1, 0, 1) or of a mean of shares. Its
    interval is Student's t with two pairs added, of -1 and 1, as Bonett and Price do for paired shares (Statistics in
    Medicine 31, 2012, 479-488): it has room also where nothing changes.

    changes: [n], n >= 1.
    """
    _, low, high = mean_interval(np.concatenate((changes, [-1.0, 1.0])))
    return Estimate(float(changes.mean()), max(float(low), -1.0), min(float(high), 1.0), len(changes))


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
    times = groups_drawn(len(names), seed)
    if median:
        value, resampled = float(np.median(sample)), _medians(sample, times[:, place])
    else:
        sums, sizes = np.bincount(place, sample), np.bincount(place)
        value, resampled = float(sample.mean()), times @ sums / (times @ sizes)
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
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    times, sizes = groups_drawn(len(names), seed), np.bincount(place)
    sums = np.zeros((len(sizes), flat.shape[1]))
    np.add.at(sums, place, flat)
    low, high = np.quantile(times @ sums / (times @ sizes)[:, None], (0.025, 0.975), axis=0)
    shape = np.shape(values)[1:]
    return flat.mean(0).reshape(shape), low.reshape(shape), high.reshape(shape)


def times_drawn(groups: Sequence[str], seed: int = 0) -> np.ndarray:
    """How often each value is in each of the bootstrap's resamples, of which whole groups are drawn, for statistics
    that are no means: float64 [RESAMPLES, values]."""
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    return groups_drawn(len(names), seed)[:, place].astype(np.float64)


def groups_drawn(count: int, seed: int = 0) -> np.ndarray:
    """How often each of `count` groups is in each of the bootstrap's resamples: float32 [RESAMPLES, count]."""
    random = np.random.default_rng(seed)
    times = np.empty((RESAMPLES, count), np.float32)
    for resample in times:
        resample[:] = np.bincount(random.integers(0, count, count), minlength=count)
    return times


def _medians(sample: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Of resamples. times: how often each value is in each, [resamples, values]."""
    order = np.argsort(sample, kind="stable")
    sample, found = sample[order], []
    for resample in times:
        # How many values there are up to each, from the least on.
        reached = np.cumsum(resample[order].astype(np.int64))
        middle = np.searchsorted(reached, [(reached[-1] + 1) // 2, reached[-1] // 2 + 1])
        found.append(sample[middle].mean())
    return np.array(found)
