"""A probe for each layer, and its control: the same fit to labels that were shuffled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emovllm_offline.reading.corpus import Corpus
from emovllm_offline.reading.fit import Regression, Standard, balance, cross_entropy
from emovllm_offline.reading.settings import Fitting
from emovllm_offline.storage.checkpoint import Arrays, Checkpoint
from emovllm_offline.storage.planes import Planes

# One for each way in which the same states were fitted.
FILE = "probes-{}.safetensors"


@dataclass(frozen=True, slots=True)
class Probes:
    """What was fitted in every layer, by the names in the checkpoint; float32 but where said otherwise.

    mean, scale: [layers, hidden]; weight: [layers, labels, hidden]; bias: [layers, labels].
    penalty: float64 [layers], the best on the dev texts, and loss, float64 [layers, penalties], by which it is, from
    the strongest on; infinite where none was fitted, behind the first that is worse than the one before.
    predicted, control: int32 [layers, texts], what the probe and its control take each text for, texts to learn from
    included.
    """

    arrays: Arrays

    @classmethod
    def blank(cls, layers: int, corpus: Corpus, hidden: int, penalties: int) -> Probes:
        labels, texts = len(corpus.labels), len(corpus.texts)
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "mean": ((layers, hidden), np.float32),
            "scale": ((layers, hidden), np.float32),
            "weight": ((layers, labels, hidden), np.float32),
            "bias": ((layers, labels), np.float32),
            "penalty": ((layers,), np.float64),
            "loss": ((layers, penalties), np.float64),
            "predicted": ((layers, texts), np.int32),
            "control": ((layers, texts), np.int32),
        }
        return cls(Arrays({name: np.zeros(shape, kind) for name, (shape, kind) in shapes.items()}))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


def fit_layers(
    planes: Planes,
    order: np.ndarray,
    corpus: Corpus,
    fitting: Fitting,
    work: Path,
    *,
    inputs: Mapping[str, Any],
    device: Any,
    shown: bool,
) -> Probes:
    """Fits every layer, one layer's states in memory at a time; an interrupted run goes on with the next layer.

    order: which text each row of the planes is of. inputs: what the states are made of. Raises: CheckpointError.
    """
    layers, _, hidden = planes.shape
    probes = Probes.blank(layers, corpus, hidden, len(fitting.penalties))
    given = {**inputs, "labels": corpus.digest(), "penalties": sorted(fitting.penalties, reverse=True)}
    given |= {"weights": fitting.weights, "seed": fitting.seed}
    name = FILE.format(hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12])
    checkpoint = Checkpoint(work / name, given)
    for layer in checkpoint.steps(range(layers), probes.arrays, "probes", unit="layers", shown=shown):
        states = np.empty((len(order), hidden), np.float32)
        states[order] = planes.plane(layer)
        _fit_layer(probes, layer, states, corpus, fitting, device)
    return probes


def _fit_layer(probes: Probes, layer: int, states: np.ndarray, corpus: Corpus, fitting: Fitting, device: Any) -> None:
    """states: [texts, hidden], in the corpus' order."""
    train, dev = corpus.of("train"), corpus.of("dev")
    count = len(corpus.labels)
    learnt = corpus.label[train]
    weights = balance(learnt, count) if fitting.weights == "balanced" else np.ones(count, np.float32)
    standard = Standard.of(states[train])
    states = standard.apply(states)
    regression = Regression(states[train], device)
    best, losses = None, np.full(len(fitting.penalties), np.inf)
    for number, fit in enumerate(regression.path(learnt, weights, fitting.penalties)):
        losses[number] = cross_entropy(fit.logits(states[dev]), corpus.label[dev], weights)
        if best is not None and losses[number] >= losses[number - 1]:
            # Weaker ones only learn their texts by heart, and take the most steps.
            break
        best = fit
    assert best is not None
    shuffled = shuffle(learnt, corpus.group[train], fitting.seed)
    (control,) = regression.path(shuffled, weights, [best.penalty])
    values = {
        "mean": standard.mean,
        "scale": standard.scale,
        "weight": best.weight,
        "bias": best.bias,
        "penalty": best.penalty,
        "loss": losses,
        "predicted": best.logits(states).argmax(1),
        "control": control.logits(states).argmax(1),
    }
    for name, value in values.items():
        probes[name][layer] = value


def shuffle(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """The labels of texts in another order: within each group where most texts are in one with other labels too, as
    where a scenario was written in every emotion; else among all texts.

    labels, groups: [texts].
    """
    random = np.random.default_rng(seed)
    _, group = np.unique(groups, return_inverse=True)
    if not shuffled_within_groups(labels, groups):
        return random.permutation(labels)
    # The texts group by group, and in each in any order.
    mixed = np.lexsort((random.random(len(labels)), group))
    shuffled = labels.copy()
    shuffled[np.argsort(group, kind="stable")] = labels[mixed]
    return shuffled


def shuffled_within_groups(labels: np.ndarray, groups: np.ndarray) -> bool:
    """Whether most texts are in a group with other labels."""
    _, group = np.unique(groups, return_inverse=True)
    least, most = np.full(group.max() + 1, labels.max()), np.zeros(group.max() + 1, labels.dtype)
    np.minimum.at(least, group, labels)
    np.maximum.at(most, group, labels)
    return bool((least < most)[group].mean() > 0.5)
