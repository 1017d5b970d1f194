"""Confidence intervals, against published tables and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from emovllm_offline.intervals import by_group, mean_change, mean_interval, means_by_group, wilson


def test_wilson_agrees_with_its_published_values() -> None:
    none = wilson(0, 10)
    assert none is not None
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(0.2775, abs=1e-4)
    some = wilson(8, 10)
    assert some is not None
    assert (some.low, some.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 0) is None


def alone(values) -> list[str]:
    """Each value in a group of its own."""
    return [str(number) for number, _ in enumerate(values)]


def test_the_bootstrap_covers_the_mean_and_repeats_itself() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400).tolist()
    estimate = by_group(values, alone(values))
    # The normal theory's interval.
    half = 1.96 * np.std(values) / math.sqrt(len(values))
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.low == pytest.approx(estimate.value - half, abs=0.05)
    assert estimate.high == pytest.approx(estimate.value + half, abs=0.05)
    assert by_group(values, alone(values)) == estimate
    with pytest.raises(ValueError, match="0 values"):
        by_group([], [])


@pytest.mark.parametrize("count", [100, 401])
def test_the_bootstrap_of_a_median_is_scipys(count: int) -> None:
    values = np.random.default_rng(1).lognormal(size=count)
    ours = by_group(values, alone(values), median=True)
    theirs = bootstrap((values,), np.median, n_resamples=1000, method="percentile", rng=np.random.default_rng(5))
    assert ours.value == np.median(values)
    spread = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.15 * spread)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.15 * spread)


def test_the_bootstrap_of_a_median_ignores_outliers_and_of_one_value_is_that_value() -> None:
    values = [1.0] * 50 + [1e9]
    estimate = by_group(values, alone(values), median=True)
    assert (estimate.value, estimate.low, estimate.high) == (1, 1, 1)
    single = by_group([3.0], ["a"])
    assert (single.low, single.high, single.count) == (3, 3, 1)


@pytest.mark.parametrize("median", [False, True])
def test_what_is_said_ten_times_by_each_group_is_no_more_evidence_than_once(median: bool) -> None:
    values = np.random.default_rng(2).normal(0, 1, 60)
    once = by_group(values, alone(values), median=median)
    often = by_group(np.repeat(values, 10), np.repeat(alone(values), 10).tolist(), median=median)
    assert often.count == 600
    assert (often.value, often.low, often.high) == pytest.approx((once.value, once.low, once.high))


def test_the_interval_of_a_share_by_groups_holds_it_in_about_95_of_100_cases() -> None:
    rng = np.random.default_rng(0)
    held = wilsons = 0
    for _ in range(400):
        # Thirty scenarios, which differ in how easy they are; six replies each.
        easy = rng.beta(2, 2, 30)
        hits = (rng.random((30, 6)) < easy[:, None]).astype(float)
        ours = by_group(hits.ravel(), np.repeat(np.arange(30).astype(str), 6).tolist())
        of_replies = wilson(int(hits.sum()), hits.size)
        assert of_replies is not None
        held += ours.low <= 0.5 <= ours.high
        wilsons += of_replies.low <= 0.5 <= of_replies.high
    assert 0.9 < held / 400 < 0.98
    assert wilsons / 400 < 0.9


def test_a_share_of_all_or_none_is_no_certainty() -> None:
    all_of_six = by_group([1.0] * 60, np.repeat(alone(range(6)), 10).tolist())
    six = wilson(6, 6)
    assert six is not None
    assert (all_of_six.value, all_of_six.low, all_of_six.high, all_of_six.count) == (1, six.low, 1, 60)
    one_group = by_group([1.0, 0.0, 1.0, 1.0], ["a"] * 4)
    assert (one_group.value, one_group.low, one_group.high) == (0.75, 0, 1)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (9, 2.262), (29, 2.045), (10**5, 1.960)]
)
def test_the_interval_of_a_mean_is_that_of_the_tables_of_students_t(freedom, quantile):
    values = np.random.default_rng(0).standard_normal(freedom + 1)
    mean, low, high = mean_interval(values)
    half = quantile * np.std(values, ddof=1) / math.sqrt(len(values))
    assert (low, high) == (pytest.approx(mean - half, rel=1e-3), pytest.approx(mean + half, rel=1e-3))


def test_equal_values_have_an_interval_without_width():
    for bound in mean_interval(np.full((3, 2), 0.25)):
        assert bound.tolist() == [0.25, 0.25]


def test_the_interval_of_a_mean_holds_it_in_95_of_100_cases():
    samples = np.random.default_rng(0).standard_normal((6, 4000))
    _, low, high = mean_interval(samples)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.95, abs=0.01)


def test_many_means_have_the_intervals_that_each_has_alone() -> None:
    values = np.random.default_rng(2).normal(size=(60, 2, 3))
    groups = [str(i // 4) for i in range(60)]
    of_all = means_by_group(values, groups)
    for place in np.ndindex(2, 3):
        alone = by_group(values[(slice(None), *place)], groups)
        assert [of[place] for of in of_all] == pytest.approx([alone.value, alone.low, alone.high])
    with pytest.raises(ValueError, match="0 values"):
        means_by_group(values[:0], [])


def test_changes_that_are_all_alike_leave_room_for_others() -> None:
    for change, low, high in ((0.0, -0.137, 0.137), (1.0, 0.72, 1.0), (-1.0, -1.0, -0.72)):
        found = mean_change(np.full(20, change))
        assert (found.value, found.count) == (change, 20)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize("shares", [(0.6, 0.4, 0.0), (0.2, 0.6, 0.2), (0.05, 0.95, 0.0), (0.02, 0.96, 0.02)])
def test_the_interval_of_a_mean_change_holds_it_in_95_of_100_cases_or_more(shares: tuple[float, ...]) -> None:
    random = np.random.default_rng(0)
    found = [mean_change(random.choice((-1.0, 0.0, 1.0), 20, p=shares)) for _ in range(1000)]
    assert np.mean([of.low <= shares[2] - shares[0] <= of.high for of in found]) > 0.935
