"""What is folded through a layer's kernel is W delta however the kernel rounds what it is given, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from emovllm.engine.fold import fold
from emovllm.errors import Unsupported
from support import rounding
from support.rounding import of_fp4, to_fp4

WIDTH, HIDDEN = 256, 48
WEIGHT = torch.randn(HIDDEN, WIDTH, generator=torch.Generator().manual_seed(0)) / 16
# Largest inputs that were seen when a scale was fixed: far below 1, about it, far above.
SEEN = (0.02, 0.25, 0.8, 1.3, 37.0, 3000.0)
Rounding = Callable[[Tensor], Tensor]


class Kernel:
    """A quant_method."""

    def __init__(self, rounds: Rounding, weight: Tensor = WEIGHT) -> None:
        self._rounds, self._weight = rounds, weight

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return (self._rounds(x.float()) @ self._weight.T).to(x.dtype)


def layer_of(method: Any, dtype: torch.dtype = torch.float32, **scales: Any) -> Any:
    return SimpleNamespace(
        quant_method=method,
        params_dtype=dtype,
        output_size=HIDDEN,
        input_size_per_partition=WIDTH,
        emotion_vectors=torch.zeros(2, HIDDEN),
        **{name: torch.tensor(value) if isinstance(value, float | int) else value for name, value in scales.items()},
    )


def distance(layer: Any, weight: Tensor = WEIGHT) -> float:
    delta = np.zeros((2, WIDTH), np.float32)
    random = np.random.default_rng(1)
    for row in delta:
        row[random.choice(WIDTH, 20, replace=False)] = random.standard_normal(20)
    right = torch.from_numpy(delta) @ weight.T
    folded = fold("mlp.3", layer, layer.quant_method.apply, delta)
    power = torch.from_numpy(delta).square() @ weight.square().mean(0)
    torch.testing.assert_close(folded.power, power, rtol=0.02, atol=0)
    return float((folded.vectors - right).norm() / right.norm())


def fp8(x: Tensor, scale: Any, dtype: torch.dtype = torch.float8_e4m3fn, largest: float = 448.0) -> Tensor:
    return (x / scale).clamp(-largest, largest).to(dtype).float() * scale


def int8(x: Tensor, scale: Any, zero: Any = 0) -> Tensor:
    return (((x / scale).round() + zero).clamp(-128, 127) - zero) * scale


def largest_of(x: Tensor, group: int | None = None) -> Tensor:
    """Of each row, or of each so many inputs of a row."""
    if group is None:
        return x.abs().amax(-1, keepdim=True)
    return x.unflatten(-1, (-1, group)).abs().amax(-1).repeat_interleave(group, -1).clamp(min=1e-10)


def power(x: Tensor) -> Tensor:
    return torch.exp2(x.log2().floor())


def mxfp4(x: Tensor) -> Tensor:
    scale = power(largest_of(x, 32)) / 4
    return of_fp4(to_fp4(x / scale)) * scale


def nvfp4(x: Tensor, inverse: float) -> Tensor:
    """vLLM's own arithmetic."""
    from vllm.model_executor.layers.quantization.utils.nvfp4_emulation_utils import ref_nvfp4_quant_dequant

    return ref_nvfp4_quant_dequant(x, torch.tensor(inverse), 16)


def of_fixed_scale(scheme: str, seen: float) -> tuple[Rounding, dict[str, float]]:
    """A kernel's rounding with a scale that was fixed for inputs up to `seen`, and the scales beside its weight."""
    if scheme == "nvfp4":
        inverse = 2688 / seen
        return lambda x: nvfp4(x, inverse), {"input_global_scale": 1 / inverse, "input_global_scale_inv": inverse}
    if scheme.startswith("int8"):
        zero = int(scheme.removeprefix("int8") or 0)
        scale = seen / max(127 - zero, 128 + zero)
        return lambda x: int8(x, scale, zero), {"input_scale": scale} | ({"input_zero_point": zero} if zero else {})
    dtype, largest = {
        "fp8": (torch.float8_e4m3fn, 448.0),
        "fp8 of AMD, as vLLM clips it": (torch.float8_e4m3fnuz, 224.0),
        "fp8 of AMD": (torch.float8_e4m3fnuz, 240.0),
    }[scheme]
    scale = seen / largest
    return lambda x: fp8(x, scale, dtype, largest), {"input_scale": scale}


FIXED = ("fp8", "fp8 of AMD, as vLLM clips it", "fp8 of AMD", "int8", "int8-128", "int8-37", "int8127", "nvfp4")


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("scheme", FIXED)
def test_a_scale_that_was_fixed_beforehand_neither_clips_nor_rounds(scheme: str, seen: float) -> None:
    rounds, scales = of_fixed_scale(scheme, seen)
    one = rounds(torch.eye(1, WIDTH))[0, 0]
    assert distance(layer_of(Kernel(rounds), **scales)) < 1e-5
    assert distance(layer_of(Kernel(rounds), torch.bfloat16, **scales)) < 4e-3
    # The case is one only where a 1 would not do.
    assert seen not in (0.02, 0.25, 0.8) or abs(one - 1) > 0.1


@pytest.mark.parametrize("seen", [0.25, 37.0])
def test_vllms_own_kernels_of_four_and_eight_bit_blocks_are_folded_through_as_their_weights(seen: float) -> None:
    from vllm.model_executor.kernels.linear.mxfp8.emulation import EmulationMxfp8LinearKernel
    from vllm.model_executor.kernels.linear.nvfp4.emulation import EmulationNvFp4LinearKernel

    of_nvfp4, of_mxfp8 = rounding.nvfp4(WEIGHT, modelopt=True), rounding.mxfp8(WEIGHT)
    fixed = {"input_global_scale": seen / 2688, "input_global_scale_inv": 2688 / seen}
    whole = {"weight_global_scale": of_nvfp4.tensors["weight_scale_2"]}
    for kernel, rounded, scales in (
        (EmulationNvFp4LinearKernel, of_nvfp4, {**fixed, **whole}),
        (EmulationMxfp8LinearKernel, of_mxfp8, {}),
    ):
        stored = {name: tensor for name, tensor in rounded.tensors.items() if name != "weight_scale_2"}
        layer = layer_of(SimpleNamespace(), torch.bfloat16, **stored, **scales)
        own = kernel.__new__(kernel)
        own.process_weights_after_loading(layer)
        layer.quant_method.apply = own.apply_weights
        assert distance(layer, rounded.plain) < 4e-3


DYNAMIC: dict[str, Rounding] = {
    "fp8 by token": lambda x: fp8(x, largest_of(x) / 448),
    "fp8 by tensor": lambda x: fp8(x, x.abs().max() / 448),
    "fp8 by 128": lambda x: fp8(x, largest_of(x, 128) / 448),
    "fp8 by 128, powers of two": lambda x: fp8(x, 2 * power(largest_of(x, 128) / 448)),
    "fp8 by token, with a bound": lambda x: fp8(x, largest_of(x).clamp(max=1200) / 448),
    "int8 by token": lambda x: int8(x, largest_of(x) / 127),
    "int8 by token, with zeros": lambda x: int8(x, largest_of(x) / 255, -128),
    "mxfp8": lambda x: fp8(x, power(largest_of(x, 32)) / 256),
    "mxfp4": mxfp4,
    "16 bits": lambda x: x,
}


@pytest.mark.parametrize("scheme", DYNAMIC)
def test_a_kernel_with_scales_of_its_own_and_one_that_rounds_nothing_are_given_ones(scheme: str) -> None:
    layer = layer_of(Kernel(DYNAMIC[scheme]))
    given = []
    apply = layer.quant_method.apply
    layer.quant_method.apply = lambda layer, x, bias=None: (given.append(x.max()), apply(layer, x, bias))[1]
    assert distance(layer) < 1e-5
    assert given[-1] == 1


@pytest.mark.parametrize(
    "scales", [{"input_scale": 0.001}, {"input_global_scale_inv": 2688 / 0.3}, {"input_scale": 40.0}]
)
def test_a_scale_that_the_kernel_does_not_heed_is_not_heeded(scales: dict[str, float]) -> None:
    assert distance(layer_of(Kernel(lambda x: x), **scales)) < 1e-6


def test_a_layer_that_is_not_quantised_is_asked_nothing() -> None:
    method = UnquantizedLinearMethod()
    calls = []
    layer = layer_of(method)
    method.apply = lambda layer, x, bias=None: (calls.append(len(x)), x @ WEIGHT.T)[1]
    assert distance(layer) < 1e-6
    assert len(calls) == 1


def test_rounding_around_a_kernel_of_whole_numbers_is_gone_past() -> None:
    from vllm.model_executor.layers.quantization.compressed_tensors.schemes import compressed_tensors_wNa8o8

    inside = Kernel(lambda x: x)

    class Around:
        def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
            fixed = compressed_tensors_wNa8o8.fake_quant_static_int8
            out = inside.apply(layer, fixed(x, torch.tensor(0.3 / 127)), bias)
            return fixed(out, torch.tensor(2.0 / 127))

    layer = layer_of(Around())
    with pytest.raises(Unsupported, match=r"mlp\.3: Around rounds"):
        distance(layer)
    kernel = SimpleNamespace(apply_weights=inside.apply)
    layer.scheme = SimpleNamespace(has_input_act=True, has_output_act=True, kernel=kernel)
    assert distance(layer) < 1e-6


def hadamard(x: Tensor) -> Tensor:
    """Of each 32 inputs."""
    matrix = torch.ones(1, 1)
    for _ in range(5):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return (x.unflatten(-1, (-1, 32)) @ (matrix / 32**0.5)).flatten(-2)


@pytest.mark.parametrize("rounds", [lambda x: fp8(x, 0.5 / 448), lambda x: fp8(x, 9 / 448), lambda x: int8(x, 0.01)])
def test_a_fixed_scale_that_is_kept_elsewhere_is_refused(rounds: Rounding) -> None:
    with pytest.raises(Unsupported, match=r"mlp\.3: Kernel rounds .* serve another quantisation"):
        distance(layer_of(Kernel(rounds)))


def test_a_scale_that_means_something_else_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"mlp\.3: Kernel rounds"):
        distance(layer_of(Kernel(lambda x: fp8(x, 0.5 / 448)), input_scale=0.013))


def test_inputs_that_are_turned_and_then_rounded_are_refused() -> None:
    weight = hadamard(WEIGHT)
    assert distance(layer_of(Kernel(hadamard, weight))) < 1e-5
    with pytest.raises(Unsupported, match=r"mlp\.3: Kernel rounds"):
        distance(layer_of(Kernel(lambda x: mxfp4(hadamard(x)), weight)))
    fixed = Kernel(lambda x: nvfp4(hadamard(x), 2688 / 0.3), weight)
    fixed.input_transform = hadamard  # type: ignore[attr-defined]
    with pytest.raises(Unsupported, match=r"mlp\.3: its inputs are transformed"):
        distance(layer_of(fixed, input_global_scale_inv=2688 / 0.3))


def test_circuits_are_folded_in_full_precision_whatever_the_model_is_allowed() -> None:
    libraries = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)

    def allowed() -> list[str]:
        return [library.fp32_precision for library in libraries]

    inside = []

    def rounds(x: Tensor) -> Tensor:
        inside.append(allowed())
        return x

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert allowed() == ["tf32", "tf32"]
        assert distance(layer_of(Kernel(rounds))) < 1e-6
        assert allowed() == ["tf32", "tf32"]
    finally:
        torch.set_float32_matmul_precision(before)
    assert inside
    assert all(each == ["ieee", "ieee"] for each in inside)
