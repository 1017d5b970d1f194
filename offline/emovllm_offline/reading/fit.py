"""Multinomial logistic regression on standardised states: one optimum, found in few passes over many texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# At most; it ends long before, where steps no longer lower the loss.
STEPS = 200


@dataclass(frozen=True, slots=True)
class Standard:
    """By what states are standardised; float32 [hidden] each. A state that never changes keeps its size."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, states: np.ndarray) -> Standard:
        """states: [texts, hidden]."""
        mean = states.mean(0, dtype=np.float64).astype(np.float32)
        scale = (states - mean).std(0, dtype=np.float64).astype(np.float32)
        # What rounding makes of one and the same number is no change.
        constant = scale <= 1e-6 * np.abs(mean)
        return cls(mean, np.where(constant, np.float32(1), scale))

    def apply(self, states: np.ndarray) -> np.ndarray:
        return (states - self.mean) / self.scale


@dataclass(frozen=True, slots=True)
class Fit:
    """weight: [labels, hidden]; bias: [labels]; float32. penalty: what it was fitted with."""

    weight: np.ndarray
    bias: np.ndarray
    penalty: float

    def logits(self, standard: np.ndarray) -> np.ndarray:
        """standard: states, standardised, [texts, hidden]. Returns: [texts, labels]."""
        return standard @ self.weight.T + self.bias  # type: ignore[no-any-return]


def balance(labels: np.ndarray, count: int) -> np.ndarray:
    """The weight of each label's texts by which all labels count alike, 1 on the average text: float32 [count]."""
    of_each = np.bincount(labels, minlength=count)
    return (len(labels) / (count * np.maximum(of_each, 1))).astype(np.float32)


def cross_entropy(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """The mean over texts, each times the weight of its label. logits: [texts, labels]; weights: [labels]."""
    loss = functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(labels).long(), torch.from_numpy(weights).double()
    )
    return float(loss)


class Regression:
    """Fits of one set of standardised states, for several penalties and labels.

    The least mean cross-entropy plus penalty / 2 * |weight|^2; the bias is free. L-BFGS moves in the states' principal
    axes, each scaled by about what the loss curves along it: states of neighbouring dimensions vary together, and it
    would need hundreds of passes otherwise. The optimum is the same.
    """

    def __init__(self, standard: np.ndarray, device: torch.device | str = "cpu") -> None:
        """standard: [texts, hidden], float32."""
        self._states = torch.from_numpy(np.ascontiguousarray(standard)).to(device)
        covariance = (self._states.T @ self._states).double() / len(self._states)
        variance, axes = torch.linalg.eigh(covariance)
        self._variance = variance.clamp(min=0)
        self._axes = axes.float()

    def path(self, labels: np.ndarray, weights: np.ndarray, penalties: Iterable[float]) -> Iterator[Fit]:
        """A fit for each penalty, from the strongest on, each begun where the last ended, when it is asked for.

        labels: [texts] in 0..len(weights)-1; weights: float32 [labels], of their texts.
        """
        target = torch.from_numpy(labels).long().to(self._states.device)
        of_label = torch.from_numpy(weights).to(self._states.device)
        weight = self._states.new_zeros(self._states.shape[1], len(weights))
        bias = self._states.new_zeros(len(weights))
        for penalty in sorted(penalties, reverse=True):
            weight, bias = self._fit(target, of_label, penalty, weight, bias)
            yield Fit(weight.T.contiguous().cpu().numpy(), bias.cpu().numpy(), penalty)

    def _fit(
        self, target: Tensor, of_label: Tensor, penalty: float, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """weight: [hidden, labels], bias: [labels], where to begin. Returns: the optimum's."""
        curvature = (self._variance / len(of_label) + penalty).sqrt().float()[:, None]
        # weight = axes @ (moved / curvature)
        moved = (curvature * (self._axes.T @ weight)).requires_grad_()
        free = bias.clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [moved, free],
            max_iter=STEPS,
            history_size=20,
            tolerance_grad=1e-5,
            tolerance_change=1e-7,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimiser.zero_grad()
            along = moved / curvature
            logits = self._states @ (self._axes @ along) + free
            entropy = functional.cross_entropy(logits, target, of_label, reduction="sum") / len(target)
            # The axes are orthonormal: the weight is as long as its coordinates.
            value = entropy + penalty / 2 * along.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimiser.step(loss)
        return (self._axes @ (moved / curvature)).detach(), free.detach()
