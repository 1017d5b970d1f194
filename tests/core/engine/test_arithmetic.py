"""The add at each site: how exact it is, that it leaves plain rows alone, and what it holds in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from emovllm.engine.arithmetic import add_emotion


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_without_coefficients_are_bit_identical(dtype: torch.dtype, compiled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(5, 16, generator=generator).to(dtype)
    coefficients = torch.zeros(8, 3)
    coefficients[2] = torch.tensor([1.0, -0.5, 0.25])
    vectors = torch.randn(3, 16, generator=generator)
    add = torch.compile(add_emotion, backend="eager", fullgraph=True) if compiled else add_emotion
    steered = add(out, coefficients, vectors, True)
    others = [0, 1, 3, 4]
    assert steered.dtype == dtype
    assert torch.equal(steered[others], out[others])
    expected = (out[2].float() + vectors[0] - 0.5 * vectors[1] + 0.25 * vectors[2]).to(dtype)
    torch.testing.assert_close(steered[2], expected)


def test_what_is_not_compiled_holds_no_terms_of_the_sum_in_memory() -> None:
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            largest = max(largest, result.numel())
            return result

    coefficients, vectors, out = torch.ones(64, 6), torch.ones(6, 16), torch.ones(32, 16)
    with Sizes():
        add_emotion(out, coefficients, vectors, fused=True)
    assert largest == 32 * 16


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vectors_of_16_bits_are_summed_in_32_and_round_no_more_than_the_output_does(
    dtype: torch.dtype, compiled: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(64, 256, generator=generator).to(dtype)
    coefficients, vectors = torch.zeros(80, 6), torch.randn(6, 256, generator=generator)
    coefficients[torch.arange(64), torch.arange(64) % 6] = torch.rand(64, generator=generator) * 4 - 2
    add = torch.compile(add_emotion, backend="eager", fullgraph=True) if compiled else add_emotion
    # In float32, to see the sum before the output is rounded.
    summed = add(out.float(), coefficients, vectors.to(dtype), True)
    torch.testing.assert_close(
        summed.double(), out.double() + coefficients[:64].double() @ vectors.to(dtype).double(), rtol=1e-6, atol=1e-6
    )
    exact = out.double() + coefficients[:64].double() @ vectors.double()
    rounding = torch.finfo(dtype).eps / 2
    assert ((summed - exact).abs() <= rounding * 1.001 * (out.double().abs() + exact.abs())).all()
    assert (summed - exact).abs().max() > rounding / 8


@pytest.mark.parametrize("dynamic", ["backed", "backed_size_oblivious", "unbacked"])
def test_a_traced_batch_is_as_long_as_its_tokens_however_sizes_are_known(dynamic: str) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    out, coefficients, vectors = torch.ones(8, 16), torch.ones(9, 3), torch.ones(3, 16)
    if dynamic == "unbacked":
        torch._dynamo.decorators.mark_unbacked(out, 0)
    else:
        torch._dynamo.mark_dynamic(out, 0)
    torch._dynamo.reset()
    with torch.fx.experimental._config.patch(backed_size_oblivious=dynamic == "backed_size_oblivious"):
        torch.compile(add_emotion, backend=keep, fullgraph=True)(out, coefficients, vectors, True)
    shapes = [
        node.meta["example_value"].shape
        for node in graphs[0].graph.nodes
        if isinstance(node.meta.get("example_value"), torch.Tensor)
    ]
    lengths = {str(shape[0]) for shape in shapes if isinstance(shape[0], torch.SymInt)}
    assert len(lengths) == 1
    assert "Min" not in str(lengths)
