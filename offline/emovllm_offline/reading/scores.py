"""How well labels are told: confusion, F1, and its intervals over groups of texts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emovllm_offline.intervals import Estimate, groups_drawn


def confusion(truth: np.ndarray, predicted: np.ndarray, labels: int) -> np.ndarray:
    """How many texts of each label (rows) are taken for each, [labels, labels]."""
    return np.bincount(truth * labels + predicted, minlength=labels * labels).reshape(labels, labels)


def f1(confusions: np.ndarray) -> np.ndarray:
    """[..., labels, labels] to [..., labels]; NaN of a label that neither occurs nor is told."""
    hits = np.diagonal(confusions, axis1=-2, axis2=-1)
    either = confusions.sum(-1) + confusions.sum(-2)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * hits / either)


def macro_f1(confusions: np.ndarray) -> np.ndarray:
    """The mean over the labels that occur or are told: [..., labels, labels] to [...]; NaN of no text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(f1(confusions), -1))


@dataclass(frozen=True, slots=True)
class McNemar:
    """Texts that one of two tellers alone is right about, and the exact probability of so uneven a split by chance.

    It takes the texts for independent of one another.
    """

    one: int
    other: int
    p: float

    @classmethod
    def of(cls, one: np.ndarray, other: np.ndarray) -> McNemar:
        """one, other: which texts each is right about, bool [texts]."""
        from scipy.stats import binomtest

        first, second = int((one & ~other).sum()), int((other & ~one).sum())
        differ = first + second
        return cls(first, second, float(binomtest(first, differ, 0.5).pvalue) if differ else 1.0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Macro F1 of a probe and of its control on the same texts, and by how much they differ."""

    f1: Estimate
    control: Estimate
    selectivity: Estimate


class Resamples:
    """Labelled texts, and how often each of their groups is in each resample of a percentile bootstrap.

    All estimates are over the same resamples, so that differences are paired.
    """

    def __init__(self, truth: np.ndarray, groups: Sequence[str], labels: int, seed: int = 0) -> None:
        """truth: [texts] in 0..labels-1, at least one."""
        if len(truth) == 0 or len(truth) != len(groups):
            raise ValueError(f"{len(truth)} texts, {len(groups)} groups")
        self._truth = truth
        self._labels = labels
        names, self._group = np.unique(np.asarray(groups), return_inverse=True)
        self._times = groups_drawn(len(names), seed)

    def compare(self, predicted: np.ndarray, control: np.ndarray) -> Comparison:
        """predicted, control: [texts]."""
        (value, resampled), (of_control, by_control) = (self._macro_f1(told) for told in (predicted, control))
        return Comparison(
            self._estimate(value, resampled),
            self._estimate(of_control, by_control),
            self._estimate(value - of_control, resampled - by_control),
        )

    def by_label(self, predicted: np.ndarray) -> list[Estimate | None]:
        """F1 of each label; None of one that neither occurs nor is told. predicted: [texts]."""
        matrix, resampled = self._confusions(predicted)
        with warnings.catch_warnings():
            # Of a label that is in no resample.
            warnings.simplefilter("ignore", RuntimeWarning)
            return [
                None if np.isnan(value) else self._estimate(value, drawn)
                for value, drawn in zip(f1(matrix), f1(resampled).T, strict=True)
            ]

    def _macro_f1(self, predicted: np.ndarray) -> tuple[float, np.ndarray]:
        """The value, and [resamples]."""
        matrix, resampled = self._confusions(predicted)
        return float(macro_f1(matrix)), macro_f1(resampled)

    def _confusions(self, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[labels, labels], and [resamples, labels, labels]."""
        cells = self._labels**2
        cell = self._group * cells + self._truth * self._labels + predicted
        by_group = np.bincount(cell, minlength=self._times.shape[1] * cells).reshape(-1, cells).astype(np.float32)
        resampled = (self._times @ by_group).reshape(-1, self._labels, self._labels)
        return confusion(self._truth, predicted, self._labels), resampled

    def _estimate(self, value: float, resampled: np.ndarray) -> Estimate:
        low, high = np.nanquantile(resampled, (0.025, 0.975))
        return Estimate(float(value), float(low), float(high), len(self._truth))
