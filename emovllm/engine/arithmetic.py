"""The injection itself: one add per site."""

from __future__ import annotations

import torch
from torch import Tensor

# Up to this many emotions the sum is written as pointwise math, which Inductor fuses with the residual add and norm
# that follow; a matrix product cannot be fused.
MAX_UNROLLED = 16


def add_emotion(out: Tensor, coefficients: Tensor, vectors: Tensor, unrolled: bool) -> Tensor:
    """Adds each token's emotions to a projection's output.

    Args:
        out: [tokens, hidden], any floating-point type; padding tokens included.
        coefficients: float32 [max_tokens, emotions], row i belonging to token i; all zero for a plain token.
        vectors: float32 [emotions, hidden], W @ delta.
    Returns: a tensor like `out`; bit-identical to it in the rows of plain tokens.
    """
    rows = coefficients[: out.shape[0]]
    if unrolled:
        added = rows[:, 0:1] * vectors[0]
        for emotion in range(1, vectors.shape[0]):
            added = added + rows[:, emotion : emotion + 1] * vectors[emotion]
    else:
        added = torch.mm(rows, vectors)
    return (out.float() + added).to(out.dtype)
