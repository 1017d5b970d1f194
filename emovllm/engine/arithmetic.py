"""The injection itself: one add per site."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Up to this many emotions the sum is written as a reduction, which Inductor unrolls (below 8) or fuses with the
# residual add and norm that follow; a matrix product cannot be fused.
MAX_FUSED = 16


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiplies float32 as it is, whatever VLLM_FLOAT32_MATMUL_PRECISION allows the model."""
    libraries = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [library.fp32_precision for library in libraries]
    try:
        for library in libraries:
            library.fp32_precision = "ieee"
        yield
    finally:
        for library, precision in zip(libraries, before, strict=True):
            library.fp32_precision = precision


def add_emotion(out: Tensor, coefficients: Tensor, vectors: Tensor, fused: bool) -> Tensor:
    """Adds each token's emotions to a projection's output.

    Args:
        out: [..., tokens, hidden], any floating-point type; padding tokens included. The dimensions before are 1, as in
            vLLM's Transformers backend, which runs layers on [1, tokens, hidden].
        coefficients: float32 [max_tokens, emotions], row i belonging to token i; all zero for a plain token.
        vectors: [emotions, hidden], W @ delta, float32 or the type of `out`; the sum is float32.
        fused: whether the surrounding graph may be compiled, and the emotions are few enough. Where it is not, as
            inside of an opaque operator, the sum's [tokens, emotions, hidden] terms would be written to memory.
    Returns: a tensor like `out`; bit-identical to it in the rows of plain tokens.
    """
    rows = rows_of(coefficients, out)
    # A few nodes per site, however many emotions: the compiler's time grows with the nodes.
    return (out.float() + mixed(rows, vectors, fused)).to(out.dtype)


def rows_of(coefficients: Tensor, out: Tensor) -> Tensor:
    """The rows of the tokens in `out`, [..., tokens, hidden]."""
    # Where the compiler may not look at the number of tokens, it is the smaller of two numbers otherwise.
    torch._check(out.shape[-2] <= coefficients.shape[0])
    return coefficients[: out.shape[-2]]


def mixed(rows: Tensor, vectors: Tensor, fused: bool) -> Tensor:
    """rows @ vectors, in float32: float32 [tokens, emotions] and [emotions, hidden] of any type; fused: as in
    `add_emotion`."""
    if fused and torch.compiler.is_compiling():
        return (rows.unsqueeze(2) * vectors).sum(1)
    return torch.mm(rows, vectors.float())
