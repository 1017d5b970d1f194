"""Multinomial logistic regression: the head of the local judge."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

# At most; it ends long before, where the gradient is zero.
STEPS = 500


@dataclass(frozen=True, slots=True)
class Softmax:
    """Probabilities of classes: softmax(x @ weight + bias)."""

    weight: np.ndarray  # [width, classes]
    bias: np.ndarray  # [classes]

    def digest(self) -> str:
        """sha256 of the numbers as float32."""
        parts = (np.ascontiguousarray(part, np.float32).tobytes() for part in (self.weight, self.bias))
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """[n, width] to [n, classes]."""
        logits = np.asarray(x, np.float64) @ self.weight + self.bias
        logits -= logits.max(1, keepdims=True)
        powers = np.exp(logits)
        return np.asarray(powers / powers.sum(1, keepdims=True))


def fit(x: np.ndarray, y: np.ndarray, classes: int, penalty: float) -> Softmax:
    """Least mean cross-entropy plus penalty / 2 * |weight|^2 (the bias is free), from zero, in float64: one optimum.

    x: [n, width]; y: [n] in 0..classes-1.
    """
    import torch

    inputs, target = torch.from_numpy(np.asarray(x, np.float64)), torch.from_numpy(np.asarray(y, np.int64))
    weight = torch.zeros(inputs.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(inputs @ weight + bias, target) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return Softmax(weight.detach().numpy(), bias.detach().numpy())
