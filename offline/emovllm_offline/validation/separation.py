"""How far the states of emotions lie apart: their principal components, and a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emovllm_offline.validation.results import Components, rounded

COMPONENTS = 3
# Of the probe's standardised features; small against their unit variance.
PENALTY = 0.1
FOLDS = 4


@dataclass(frozen=True, slots=True)
class Separation:
    """Of every layer: principal components of the states, as they are and `pure`, what they explain of them as they
    are [L][3], and the probe's F1 [L][E]."""

    components: list[Components]
    pure: list[Components]
    explained: list[list[float]]
    f1: list[list[float]]


def separate(states: np.ndarray, scenarios: int, wordings: Sequence[str]) -> Separation:
    """What the states of the elicitation prompts tell of their emotions, layer by layer.

    Pure states are those less their item's mean over the emotions: d[g,e] = h[g,e] - mean_e h[g,.] (arXiv 2510.11328,
    section 4), what sets an emotion apart from the others in the same scenario-event.

    states: [items, E, L, hidden], as many items in a row of each of the scenarios; wordings: [items].
    """
    items, emotions, layers, hidden = states.shape
    labels = np.tile(np.arange(emotions), items)
    of_scenario, of_wording = np.repeat(np.arange(scenarios), len(labels) // scenarios), np.repeat(wordings, emotions)
    components, pure, f1 = [], [], []
    for layer in range(layers):
        # One layer at a time in memory.
        x = np.array(states[:, :, layer])
        components.append(_of_layer(layer, x))
        pure.append(_of_layer(layer, x - x.mean(1, keepdims=True)))
        f1.append(rounded(probe_f1(x.reshape(-1, hidden), labels, of_scenario, of_wording, emotions)))
    return Separation(components, pure, [of_layer.explained for of_layer in components], f1)


def _of_layer(layer: int, x: np.ndarray) -> Components:
    """x: [items, E, hidden]."""
    points, share = principal_components(x.reshape(-1, x.shape[-1]), COMPONENTS)
    by_emotion = points[:, :2].reshape(*x.shape[:2], 2).swapaxes(0, 1)
    return Components(layer, rounded(share), rounded(by_emotion, 4))


def principal_components(x: np.ndarray, count: int = COMPONENTS) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates on the first principal components, and the share of the variance that each explains.

    By a randomised decomposition with one seed: no [hidden, hidden] matrix is made. A component's sign is that of its
    largest entry.

    x: [n, hidden]. Returns: [n, count] and [count]; zeros beyond the rank.
    """
    from sklearn.decomposition import PCA

    x = np.asarray(x, np.float64)
    points, explained = np.zeros((len(x), count)), np.zeros(count)
    if not x.var(0).any():
        return points, explained
    rank = min(count, *x.shape)
    pca = PCA(rank, svd_solver="randomized", n_oversamples=8, iterated_power=12, random_state=0)
    points[:, :rank] = pca.fit_transform(x)
    explained[:rank] = pca.explained_variance_ratio_
    return points, explained


def probe_f1(
    x: np.ndarray, labels: np.ndarray, scenarios: np.ndarray, wordings: np.ndarray, classes: int, folds: int = FOLDS
) -> np.ndarray:
    """F1 of each class under a linear probe (ridge regression on the classes' indicators), cross-validated.

    Scenarios and wordings are dealt to folds at random, and the probe that judges a sample has seen neither its
    scenario nor (where there are several) its wording: it can succeed only by what the samples of a class share
    beyond their words. The macro F1 is the mean of what is returned; guessing gives about 1 / classes, and a class
    that neither occurs nor is predicted has 0.

    x: [n, hidden]; labels: [n] in 0..classes-1; scenarios, wordings: [n], at least two scenarios. Returns: [classes].
    """
    from sklearn.metrics import f1_score

    x = np.asarray(x, np.float64)
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
                predicted[test] = _predict(x[train], labels[train], x[test], classes)
    return np.asarray(f1_score(labels, predicted, labels=range(classes), average=None, zero_division=0))


def _deal(rng: np.random.Generator, names: np.ndarray, folds: int) -> np.ndarray:
    """The fold of each sample, [n]: samples of one name share a fold."""
    _, number = np.unique(names, return_inverse=True)
    return rng.permutation(number.max() + 1)[number] % folds


def _predict(train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int) -> np.ndarray:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # scikit-learn's penalty is on the sum over samples, ours on their mean.
    probe = make_pipeline(StandardScaler(), Ridge(PENALTY * len(train), solver="cholesky"))
    return np.argmax(probe.fit(train, np.eye(classes)[labels]).predict(test), 1)
