"""Are states of one label nearer to one another than to those of others? Cosines of pairs, and how far they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emovllm_offline.intervals import Estimate, times_drawn

# Of a variance of cosines: what varies less is rounding.
_LEAST = 1e-12


def cosines(states: np.ndarray) -> np.ndarray:
    """Of every two: [n, hidden] to [n, n]; 0 with a state that is zero."""
    norm = np.linalg.norm(states, axis=1, keepdims=True)
    unit = np.divide(states, norm, out=np.zeros_like(states), where=norm > 0)
    return np.asarray(unit @ unit.T)


def mean_cosine(states: np.ndarray) -> float:
    """The mean over all pairs of different states, [n, hidden], n >= 2."""
    of = cosines(states)
    return float(of[np.triu_indices(len(of), 1)].mean())


@dataclass(frozen=True, slots=True)
class Separation:
    """effect: Cohen's d, with its interval over groups. auc: Mann-Whitney's U as a share of all comparisons, p its
    probability by chance, which takes pairs for independent, though they share texts."""

    effect: Estimate
    auc: float
    p: float


class Pairs:
    """Pairs of texts in different groups, with the same label or with two."""

    def __init__(self, label: np.ndarray, groups: Sequence[str], seed: int = 0) -> None:
        """label: [texts]. Raises: ValueError where there is no pair of one of the two kinds."""
        _, group = np.unique(np.asarray(groups), return_inverse=True)
        apart = group[:, None] != group[None]
        equal = label[:, None] == label[None]
        self._kinds = [(apart & equal).astype(np.float32), (apart & ~equal).astype(np.float32)]
        if not all(kind.any() for kind in self._kinds):
            raise ValueError("no pairs with one label, or none with two, in different groups")
        # How often each text is in each resample; in the first row, the sample itself.
        itself = np.ones((1, len(label)), np.float32)
        self._times = np.concatenate([itself, times_drawn(groups, seed).astype(np.float32)])
        self._counts = [self._sums(kind) for kind in self._kinds]

    def separation(self, cosines: np.ndarray) -> Separation:
        """cosines: [texts, texts]."""
        from scipy.stats import mannwhitneyu

        effects = self._effects(np.asarray(cosines, np.float32))
        low, high = np.nanquantile(effects[1:], (0.025, 0.975))
        above = np.triu(np.ones(cosines.shape, bool), 1)
        one, two = (cosines[above & (kind > 0)] for kind in self._kinds)
        found = mannwhitneyu(one, two)
        auc = float(found.statistic) / (len(one) * len(two))
        effect = Estimate(float(effects[0]), float(low), float(high), len(one) + len(two))
        return Separation(effect, auc, float(found.pvalue))

    def _effects(self, cosines: np.ndarray) -> np.ndarray:
        """Cohen's d of the sample, then of each resample."""
        means, variances = [], []
        # Moments about the overall mean lose no digits.
        shifted = cosines - cosines.mean()
        for kind, count in zip(self._kinds, self._counts, strict=True):
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = self._sums(kind * shifted) / count
                variances.append(self._sums(kind * shifted**2) / count - mean**2)
            means.append(mean)
        total = self._counts[0] + self._counts[1]
        with np.errstate(invalid="ignore", divide="ignore"):
            pooled = (self._counts[0] * variances[0] + self._counts[1] * variances[1]) / total
            return np.asarray((means[0] - means[1]) / np.sqrt(np.maximum(pooled, _LEAST)))

    def _sums(self, values: np.ndarray) -> np.ndarray:
        """Over all pairs, each as often as both its texts are there: [texts, texts] to [1 + resamples], float64."""
        return np.asarray(((self._times @ values) * self._times).sum(1, dtype=np.float64))
