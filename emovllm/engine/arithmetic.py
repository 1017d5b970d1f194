"""The injection itself: one add per site."""

from __future__ import annotations

import torch
from torch import Tensor

# Up to this many emotions the sum is written as a reduction, which Inductor unrolls (below 8) or fuses with the
# residual add and norm that follow; a matrix product cannot be fused.
MAX_FUSED = 16


def add_emotion(out: Tensor, coefficients: Tensor, vectors: Tensor, fused: bool) -> Tensor:
    """Adds each token's emotions to a projection's output.

    Args:
        out: [..., tokens, hidden], any floating-point type; padding tokens included. The dimensions before are 1, as in
            vLLM's Transformers backend, which runs layers on [1, tokens, hidden].
        coefficients: float32 [max_tokens, emotions], row i belonging to token i; all zero for a plain token.
        vectors: float32 [emotions, hidden], W @ delta.
        fused: whether the surrounding graph may be compiled, and the emotions are few enough. Where it is not, as
            inside of an opaque operator, the sum's [tokens, emotions, hidden] terms would be written to memory.
    Returns: a tensor like `out`; bit-identical to it in the rows of plain tokens.
    """
    rows = coefficients[: out.shape[-2]]
    # A few nodes per site, however many emotions: the compiler's time grows with the nodes.
    return (out.float() + mixed(rows, vectors, fused)).to(out.dtype)


def mixed(rows: Tensor, vectors: Tensor, fused: bool) -> Tensor:
    """rows @ vectors: float32 [tokens, emotions] and [emotions, hidden]; fused: as in `add_emotion`."""
    if fused and torch.compiler.is_compiling():
        return (rows.unsqueeze(2) * vectors).sum(1)
    return torch.mm(rows, vectors)
