"""The statistics of validation: confidence intervals, principal components, a linear probe."""

from __future__ import annotations

import math

import numpy as np

# Of the probe's standardised features; small against their unit variance.
PENALTY = 0.1
FOLDS = 4


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and 95% confidence interval over the first axis, by Student's t: [n, ...] to three of [...], n >= 2."""
    mean = values.mean(0)
    half = t_quantile(len(values) - 1) * values.std(0, ddof=1) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t, to 0.003 (Abramowitz and Stegun, 26.7.5; exact below 3 degrees)."""
    if freedom < 3:
        return (12.7062, 4.30265)[freedom - 1]
    z, v = 1.959964, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v**power for power, term in enumerate(terms, 1))


def principal_components(x: np.ndarray, count: int = 3, rounds: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates on the first principal components, and the share of the variance that each explains.

    By subspace iteration: no [hidden, hidden] matrix is made. A component's sign is that of its largest entry.

    x: [n, hidden]. Returns: [n, count] and [count]; zeros beyond the rank.
    """
    centred = np.asarray(x, np.float64)
    centred = centred - centred.mean(0)
    total = np.square(centred).sum()
    wide = min(count + 8, *centred.shape)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((centred.shape[1], wide)))[0]
    for _ in range(rounds):
        basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
    _, _, turn = np.linalg.svd(centred @ basis, full_matrices=False)
    axes = basis @ turn.T[:, :count]  # [hidden, count]
    axes *= np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    points = np.zeros((len(centred), count))
    points[:, : axes.shape[1]] = centred @ axes
    return points, np.square(points).sum(0) / (total or 1.0)


def probe_f1(
    x: np.ndarray, labels: np.ndarray, scenarios: np.ndarray, wordings: np.ndarray, classes: int, folds: int = FOLDS
) -> np.ndarray:
    """F1 of each class under a linear probe (ridge regression on the classes' indicators), cross-validated.

    Scenarios and wordings are dealt to folds at random, and the probe that judges a sample has seen neither its
    scenario nor (where there are several) its wording: it can succeed only by what the samples of a class share
    beyond their words. The macro F1 is the mean of what is returned; guessing gives about 1 / classes.

    x: [n, hidden]; labels: [n] in 0..classes-1; scenarios, wordings: [n], at least two scenarios. Returns: [classes].
    """
    rng = np.random.default_rng(0)
    predicted = np.empty(len(labels), np.int64)
    by_scenario, by_wording = (_deal(rng, names, folds) for names in (scenarios, wordings))
    for scenario in np.unique(by_scenario):
        for wording in np.unique(by_wording):
            test = (by_scenario == scenario) & (by_wording == wording)
            train = (by_scenario != scenario) & (by_wording != wording)
            if not train.any():
                train = by_scenario != scenario
            if test.any():
                predicted[test] = _ridge(x[train], labels[train], x[test], classes)
    return f1_scores(predicted, labels, classes)


def _deal(rng: np.random.Generator, names: np.ndarray, folds: int) -> np.ndarray:
    """The fold of each sample, [n]: samples of one name share a fold."""
    _, number = np.unique(names, return_inverse=True)
    return rng.permutation(number.max() + 1)[number] % folds


def f1_scores(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of each class; 0 for one that neither occurs nor is predicted."""
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (labels, predicted), 1)
    both = confusion.sum(0) + confusion.sum(1)
    return 2 * np.diag(confusion) / np.maximum(both, 1)


def _ridge(train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int) -> np.ndarray:
    mean, spread = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    spread[spread == 0] = 1
    a, b = (train - mean) / spread, (test - mean) / spread
    target = np.eye(classes)[labels]
    prior = target.mean(0)
    target = target - prior
    n, hidden = a.shape
    # The smaller of the two equivalent systems.
    if hidden <= n:
        weights = np.linalg.solve(a.T @ a / n + PENALTY * np.eye(hidden), a.T @ target / n)
    else:
        weights = a.T @ np.linalg.solve(a @ a.T / n + PENALTY * np.eye(n), target / n)
    return np.argmax(b @ weights + prior, 1)
