from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity

from emovllm_offline.reading.pairs import Pairs, cosines, mean_cosine


def planted(apart: float) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """States of three labels about as many directions, ten scenarios with every label."""
    random = np.random.default_rng(0)
    label = np.tile([0, 1, 2], 10)
    states = random.normal(size=(30, 16)) + apart * random.normal(size=(3, 16))[label]
    return states, label, [str(i // 3) for i in range(30)]


def test_cosines_are_those_of_another_library_and_zero_with_what_is_zero() -> None:
    states, _, _ = planted(1)
    np.testing.assert_allclose(cosines(states), cosine_similarity(states), atol=1e-9)
    assert mean_cosine(np.array([[1.0, 0], [0, 2], [0, 0]])) == 0


def test_d_and_auc_are_over_the_pairs_of_different_groups() -> None:
    states, label, groups = planted(1)
    of = cosines(states)
    pairs = [(i, j) for i in range(30) for j in range(i) if groups[i] != groups[j]]
    one = np.array([of[pair] for pair in pairs if label[pair[0]] == label[pair[1]]])
    two = np.array([of[pair] for pair in pairs if label[pair[0]] != label[pair[1]]])
    pooled = np.sqrt((len(one) * one.var() + len(two) * two.var()) / (len(one) + len(two)))
    found = Pairs(label, groups).separation(of)
    assert found.effect.value == pytest.approx((one.mean() - two.mean()) / pooled, rel=1e-3)
    same = np.repeat([1, 0], [len(one), len(two)])
    assert found.auc == pytest.approx(roc_auc_score(same, np.concatenate([one, two])))
    assert found.effect.count == len(pairs)
    assert found.effect.low < found.effect.value < found.effect.high
    assert found.p < 1e-6


def test_labels_that_mean_nothing_are_not_apart() -> None:
    states, label, groups = planted(0)
    found = Pairs(label, groups).separation(cosines(states))
    assert found.effect.low < 0 < found.effect.high
    assert found.auc == pytest.approx(0.5, abs=0.1)


def test_pairs_of_both_kinds_are_needed() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        Pairs(np.array([0, 0, 0]), ["a", "b", "c"])
    with pytest.raises(ValueError, match="no pairs"):
        Pairs(np.array([0, 1, 0]), ["a", "a", "a"])
