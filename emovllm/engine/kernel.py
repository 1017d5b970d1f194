"""The injection as a Triton kernel of its own: in place on a projection's output, and over at once for plain rows.

An operator that compilers do not look into, and that what was compiled ahead of time finds by its name. Importing this
module needs Triton.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

# Entries of a row that one program adds to.
_BLOCK = 1024
_LIBRARY = torch.library.Library("emovllm", "FRAGMENT")


@triton.jit
def _larger(a, b):  # type: ignore[no-untyped-def]
    return tl.maximum(a, b)


@triton.jit
def _add_to_row(out, coefficients, vectors, hidden, columns, out_stride, block: tl.constexpr, width: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    emotions = tl.arange(0, width)
    weights = tl.load(coefficients + row * columns + emotions, mask=emotions < columns, other=0.0)
    if tl.reduce(tl.abs(weights), 0, _larger) > 0:
        entries = tl.program_id(1) * block + tl.arange(0, block)
        inside = entries < hidden
        total = tl.full([block], 0.0, tl.float32)
        for emotion in range(columns):
            weight = tl.load(coefficients + row * columns + emotion)
            # Of many emotions, a token has one or a few.
            if weight != 0:
                total += weight * tl.load(vectors + emotion * hidden + entries, mask=inside, other=0.0).to(tl.float32)
        places = out + row * out_stride + entries
        before = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        tl.store(places, (before + total).to(out.dtype.element_ty), mask=inside)


def _add_rows(out: Tensor, coefficients: Tensor, vectors: Tensor) -> None:
    rows = out.view(-1, out.shape[-1])
    if not rows.shape[0]:
        return
    columns, hidden = vectors.shape
    grid = (rows.shape[0], triton.cdiv(hidden, _BLOCK))
    _add_to_row[grid](
        rows,
        coefficients,
        vectors,
        hidden,
        columns,
        rows.stride(0),
        block=min(_BLOCK, triton.next_power_of_2(hidden)),
        width=triton.next_power_of_2(columns),
    )


def _nothing(out: Tensor, coefficients: Tensor, vectors: Tensor) -> None:
    """What a compiler knows of the operator: it returns nothing."""


_LIBRARY.define("add_rows" + torch.library.infer_schema(_add_rows, mutates_args=["out"]))
for _device in ("CUDA", "CPU"):
    _LIBRARY.impl("add_rows", _add_rows, _device)
torch.library.register_fake("emovllm::add_rows", _nothing, lib=_LIBRARY)


def add_in_place(out: Tensor, coefficients: Tensor, vectors: Tensor) -> Tensor:
    """`emovllm.engine.arithmetic.add_emotion`, in place.

    Args:
        out: [..., tokens, hidden], whose last dimension is contiguous; the dimensions before the tokens are 1.
        coefficients: float32 [max_tokens, columns], contiguous.
        vectors: [columns, hidden], contiguous, of any floating-point type.
    Returns: `out`; the rows of plain tokens are not written to.
    """
    torch._check(out.shape[-2] <= coefficients.shape[0])
    torch.ops.emovllm.add_rows(out, coefficients, vectors)
    return out
