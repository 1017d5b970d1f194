from __future__ import annotations

import numpy as np
import pytest

from emovllm_offline.reading.fit import Regression, Standard, balance, cross_entropy


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray]:
    """States whose dimensions vary together, and labels of unlike frequency that depend on them."""
    random = np.random.default_rng(0)
    states = random.normal(size=(400, 12)) @ random.normal(size=(12, 12)) + 5
    logits = (states - 5) @ random.normal(size=(12, 3)) * 0.3 + [2.0, 0.0, 0.0]
    return states.astype(np.float32), (logits + random.gumbel(size=logits.shape)).argmax(1)


@pytest.mark.parametrize("balanced", [True, False])
def test_the_optimum_is_that_of_another_library(problem: tuple[np.ndarray, np.ndarray], balanced: bool) -> None:
    from sklearn.linear_model import LogisticRegression

    states, labels = problem
    standard = Standard.of(states).apply(states)
    weights = balance(labels, 3) if balanced else np.ones(3, np.float32)
    for fit in Regression(standard).path(labels, weights, [1.0, 0.01, 0.0001]):
        theirs = LogisticRegression(
            C=1 / (fit.penalty * len(labels)), class_weight="balanced" if balanced else None, tol=1e-10, max_iter=10_000
        ).fit(standard.astype(np.float64), labels)
        # Adding the same to all labels' bias changes nothing.
        ours, reference = fit.logits(standard), theirs.decision_function(standard.astype(np.float64))
        centred = [logits - logits.mean(1, keepdims=True) for logits in (ours, reference)]
        np.testing.assert_allclose(centred[0], centred[1], atol=2e-3 * np.abs(centred[1]).max())


def test_balanced_labels_weigh_the_same_in_sum() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])
    np.testing.assert_allclose(balance(labels, 3) * np.bincount(labels), [10 / 3] * 3, rtol=1e-6)


def test_states_are_standardised_and_those_that_never_change_keep_their_size() -> None:
    states = np.random.default_rng(0).normal(3, 2, (50, 3)).astype(np.float32)
    states[:, 1] = 1e4 / 3
    of = Standard.of(states)
    standard = of.apply(states)
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(standard.std(0)[[0, 2]], 1, rtol=1e-4)
    assert of.scale[1] == 1


def test_cross_entropy_weighs_texts_by_their_label() -> None:
    logits = np.log(np.array([[0.5, 0.5], [0.8, 0.2]], np.float32))
    value = cross_entropy(logits, np.array([0, 1]), np.array([1, 3], np.float32))
    assert value == pytest.approx(-(np.log(0.5) + 3 * np.log(0.2)) / 4, rel=1e-6)
