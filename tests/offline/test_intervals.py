"""Confidence intervals, against published tables and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from emovllm_offline.intervals import bootstrap, mean_interval, wilson


def test_wilson_agrees_with_its_published_values() -> None:
    none = wilson(0, 10)
    assert none is not None
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(0.2775, abs=1e-4)
    some = wilson(8, 10)
    assert some is not None
    assert (some.low, some.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 0) is None


def test_the_bootstrap_covers_the_mean_and_repeats_itself() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400).tolist()
    estimate = bootstrap(values)
    assert estimate is not None
    # The normal theory's interval.
    half = 1.96 * np.std(values) / math.sqrt(len(values))
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.low == pytest.approx(estimate.value - half, abs=0.05)
    assert estimate.high == pytest.approx(estimate.value + half, abs=0.05)
    assert bootstrap(values) == estimate
    assert bootstrap([]) is None


def test_the_bootstrap_of_a_median_ignores_outliers_and_of_one_value_is_that_value() -> None:
    estimate = bootstrap([1.0] * 50 + [1e9], np.median)
    assert estimate is not None
    assert (estimate.value, estimate.low, estimate.high) == (1, 1, 1)
    single = bootstrap([3.0])
    assert single is not None
    assert (single.low, single.high, single.count) == (3, 3, 1)


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
