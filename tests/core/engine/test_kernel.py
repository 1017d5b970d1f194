"""The Triton kernel, interpreted on the CPU, against the matrix product."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emovllm.engine.arithmetic import add_emotion

pytestmark = pytest.mark.usefixtures("interpreted")

# For A100, and for H100 and H200; needs no GPU.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from emovllm.engine.kernel import _add_to_row

types = ["*bf16", "*fp32", "*bf16", "i32", "i32", "i32", "constexpr", "constexpr"]
signature = dict(zip(_add_to_row.arg_names, types, strict=True))
source = triton.compiler.ASTSource(_add_to_row, signature, {"block": 1024, "width": 8})
for architecture in (80, 90):
    assert triton.compile(source, target=GPUTarget("cuda", architecture, 32)).asm["cubin"]
"""


def batch(dtype: torch.dtype, columns: int, hidden: int, tokens: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """A projection's output, in which only rows 1, 3 and 6 are steered: by one, two and all emotions."""
    generator = torch.Generator().manual_seed(columns)
    out = torch.randn(tokens, hidden, generator=generator).to(dtype)
    # Rows of zeros are not even written to.
    out[0, 0], out[2, 0], out[5, 0] = -0.0, torch.nan, torch.inf
    coefficients = torch.zeros(tokens + 2, columns)
    coefficients[1, -1] = -1.5
    coefficients[3, [0, columns // 2]] = torch.tensor([0.7, 0.3])
    coefficients[6] = torch.rand(columns, generator=generator)
    return out, coefficients, torch.randn(columns, hidden, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("columns", "hidden"), [(1, 1), (2, 64), (6, 1500), (7, 1024), (16, 40), (21, 2049), (256, 33)]
)
def test_the_kernel_equals_the_matrix_product_and_leaves_plain_rows_as_they_are(
    dtype: torch.dtype, columns: int, hidden: int
) -> None:
    from emovllm.engine.kernel import add_in_place

    out, coefficients, vectors = batch(dtype, columns, hidden)
    vectors = vectors.to(dtype)
    expected, before = add_emotion(out, coefficients, vectors, fused=False), out.clone()
    assert add_in_place(out, coefficients, vectors) is out
    plain, steered = [0, 2, 4, 5], [1, 3, 6]
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(out[plain].view(bits), before[plain].view(bits))
    # Summed in another order, a value may be rounded to the next.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out[steered], expected[steered], rtol=eps, atol=eps * columns)
    assert not torch.equal(out[steered], before[steered])


def test_an_output_may_be_a_part_of_a_wider_one_or_have_a_dimension_more() -> None:
    from emovllm.engine.kernel import add_in_place

    out, coefficients, vectors = batch(torch.float32, 3, 40)
    out = out.nan_to_num()
    expected = add_emotion(out, coefficients, vectors, fused=False)
    padded = torch.full((7, 64), 5.0)
    padded[:, :40] = out
    torch.testing.assert_close(add_in_place(padded[:, :40], coefficients, vectors), expected)
    assert (padded[:, 40:] == 5).all()
    torch.testing.assert_close(add_in_place(out[None].clone(), coefficients, vectors)[0], expected)
    add_in_place(out[:0], coefficients, vectors)
    with pytest.raises(RuntimeError):
        add_in_place(torch.zeros(10, 40), coefficients, vectors)


def test_compilers_know_the_operator_and_that_it_writes_to_its_first_argument() -> None:
    from emovllm.engine.kernel import add_in_place

    out, coefficients, vectors = batch(torch.float32, 3, 40)
    torch.library.opcheck(torch.ops.emovllm.add_rows, (out.nan_to_num(), coefficients, vectors))
    graphs: list[Any] = []

    def projection(x: Tensor, weight: Tensor) -> Tensor:
        return add_in_place(x @ weight, coefficients, vectors) * 2

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(projection, backend=keep, fullgraph=True, dynamic=True)
    weight = torch.randn(40, 40)
    for tokens in (7, 5, 2):
        x = torch.randn(tokens, 40)
        torch.testing.assert_close(compiled(x, weight), add_emotion(x @ weight, coefficients, vectors, False) * 2)
    assert len(graphs) == 1


def test_triton_compiles_the_kernel_for_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
