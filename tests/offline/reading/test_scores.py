from __future__ import annotations

import numpy as np
import pytest

from emovllm_offline.reading.scores import McNemar, Resamples, confusion, f1, macro_f1


def test_f1_is_that_of_another_library() -> None:
    from sklearn.metrics import confusion_matrix, f1_score

    random = np.random.default_rng(0)
    truth, told = random.integers(0, 4, (2, 200))
    matrix = confusion(truth, told, 4)
    assert np.array_equal(matrix, confusion_matrix(truth, told))
    np.testing.assert_allclose(f1(matrix), f1_score(truth, told, average=None))
    assert macro_f1(matrix) == pytest.approx(f1_score(truth, told, average="macro"))


def test_a_label_that_neither_occurs_nor_is_told_does_not_count() -> None:
    matrix = confusion(np.array([0, 0, 2]), np.array([0, 2, 2]), 3)
    assert np.isnan(f1(matrix)[1])
    assert macro_f1(matrix) == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_intervals_are_wider_where_texts_come_in_groups() -> None:
    random = np.random.default_rng(0)
    truth = np.tile([0, 1], 100)
    right = np.repeat(random.random(20) < 0.7, 10)
    told = np.where(right, truth, 1 - truth)
    widths = [
        of.high - of.low
        for groups in (np.arange(200), np.repeat(np.arange(20), 10))
        for of in [Resamples(truth, groups.astype(str).tolist(), 2).compare(told, 1 - truth).f1]
    ]
    assert widths[1] > 2 * widths[0] > 0


def test_a_probe_is_compared_with_its_control_on_the_same_resamples() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 300)
    told = np.where(random.random(300) < 0.6, truth, 1 - truth)
    resamples = Resamples(truth, [str(i) for i in range(300)], 2)
    same = resamples.compare(told, told).selectivity
    assert (same.value, same.low, same.high) == (0, 0, 0)
    compared = resamples.compare(truth, told)
    assert compared.f1.value == compared.f1.low == 1
    assert compared.selectivity.value == pytest.approx(1 - compared.control.value)
    assert compared.control.low < compared.control.value < compared.control.high
    assert compared == Resamples(truth, [str(i) for i in range(300)], 2).compare(truth, told)


def test_the_interval_of_each_labels_f1_holds_it_and_a_label_that_is_nowhere_has_none() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 200)
    told = np.where(random.random(200) < 0.8, truth, 1 - truth)
    one, other, none = Resamples(truth, [str(i) for i in range(200)], 3).by_label(told)
    assert none is None
    for place, of in enumerate((one, other)):
        assert of is not None
        assert of.value == pytest.approx(f1(confusion(truth, told, 2))[place])
        assert of.low < of.value < of.high


@pytest.mark.parametrize(("one", "other", "p"), [(10, 2, 0.038574), (5, 5, 1.0), (0, 0, 1.0), (0, 8, 0.0078125)])
def test_mcnemars_p_is_exact(one: int, other: int, p: float) -> None:
    first = np.array([True] * one + [False] * other + [True, False])
    second = np.array([False] * one + [True] * other + [True, False])
    of = McNemar.of(first, second)
    assert (of.one, of.other) == (one, other)
    assert of.p == pytest.approx(p, rel=1e-4)
