"""Folding: W delta through the layer's own kernel, whatever its weight is packed as.

The kernel is given rows with one value each, so that columns of W come out, and these are summed in float32. The value
is not free. Kernels that round what they are given by a row's or a block's own largest value hold a 1 exactly. Those
with a scale that was fixed when the checkpoint was made (static FP8 and INT8, the global scale of NVFP4) would clip or
round it: they are given a little more than the largest value that their scale stands for, and hold that one exactly.
Whether a kernel heeds the scale beside its weight is asked of the kernel: many compute with 16 bits all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from emovllm.engine.arithmetic import full_precision
from emovllm.errors import Unsupported

Apply = Callable[..., Tensor]

# One-hot rows that go through a projection at once.
_CHUNK = 512
# Columns that are asked how a kernel rounds.
_ASKED = 16
# The largest values of number formats: FP8 E4M3, its kind on AMD's GPUs as vLLM clips it, the same in full, INT8.
_LARGEST = (448.0, 224.0, 240.0, 127.0)
# Of NVFP4: of a value, 6, times that of a block's scale.
_LARGEST_NVFP4 = 6 * 448.0
# Beyond the largest value, and yet rounded to it where a kernel does not clip.
_BEYOND = 1.01
# Equal but for the rounding of what comes out, in 16 bits.
_EQUAL = 0.01
# Wider apart than what a fixed scale of eight bits has room for, and one that four bits hold where they hold a 1.
_TRIED = (2.0**-9, 1.5, 2.0**10)
# So far may a kernel round a value within its range: some integer kernels overflow on old processors.
_ROUNDED = 0.25


class Folded(NamedTuple):
    """vectors: float32 [emotions, hidden]. power: float32 [emotions], the mean square of an entry if columns were
    summed with random signs; both add up over the ranks."""

    vectors: Tensor
    power: Tensor


class Unit(NamedTuple):
    """The value of a one-hot row, and what the kernel takes it for."""

    given: float
    held: float


@torch.inference_mode()
@full_precision()
def fold(name: str, layer: Any, apply: Apply, delta: np.ndarray, device: torch.device | None = None) -> Folded:
    """W @ delta for this rank's shard.

    Args:
        apply: the layer's own `quant_method.apply`.
        delta: float32 [emotions, input_size_per_partition].
        device: the layer's; by default that of its vectors.
    Returns: on that device.
    Raises: Unsupported where the kernel rounds in a way that is not known.
    """
    device = layer.emotion_vectors.device if device is None else device
    used = np.flatnonzero(delta.any(axis=0))
    vectors = torch.zeros(delta.shape[0], layer.output_size, dtype=torch.float32, device=device)
    power = torch.zeros(delta.shape[0], dtype=torch.float32, device=device)
    if not len(used):
        return Folded(vectors, power)
    apply = _without_rounded_outputs(layer, apply)
    unit = _unit(name, layer, apply, used, device)
    for chunk in (used[start : start + _CHUNK] for start in range(0, len(used), _CHUNK)):
        columns = _columns(layer, apply, chunk, unit.given, device) / unit.held
        weights = torch.from_numpy(np.ascontiguousarray(delta[:, chunk])).to(device)
        vectors += weights @ columns
        power += weights.square() @ columns.square().mean(1)
    return Folded(vectors, power)


def _columns(layer: Any, apply: Apply, indices: np.ndarray, value: float, device: torch.device) -> Tensor:
    """The kernel's outputs for one-hot rows of a value: float32 [indices, hidden]."""
    width = layer.input_size_per_partition
    rows = torch.zeros(len(indices), width, dtype=layer.params_dtype, device=device)
    rows[torch.arange(len(indices)), torch.from_numpy(indices)] = value
    return apply(layer, rows, None).float()


def _unit(name: str, layer: Any, apply: Apply, used: np.ndarray, device: torch.device) -> Unit:
    """Raises: Unsupported."""
    one = Unit(1.0, 1.0)
    if isinstance(layer.quant_method, UnquantizedLinearMethod):
        return one
    asked = used[np.linspace(0, len(used) - 1, min(len(used), _ASKED)).round().astype(np.int64)]

    def answer(value: float) -> Tensor:
        # Apart from each other, for some kernels take one scale for all rows.
        return _columns(layer, apply, asked, value, device)

    largest = _largest_inputs(layer)
    if largest and getattr(layer.quant_method, "input_transform", None) is not None:
        raise Unsupported(f"{name}: its inputs are transformed, then rounded by a fixed scale; {_REMEDY}")
    for held in largest:
        given = _BEYOND * held
        more = _more(given, layer.params_dtype)
        full, half, beyond = answer(given), answer(held / 2), answer(more)
        if _equal(beyond, full * (more / given), _EQUAL) and _equal(half, full * (held / given / 2), _EQUAL):
            return one
        if _equal(beyond, full, _EQUAL) and _equal(half, full / 2, _ROUNDED):
            return Unit(given, held)
    plain = answer(1.0)
    if not largest and all(_equal(answer(value), plain * value, _EQUAL) for value in _TRIED):
        return one
    raise Unsupported(
        f"{name}: {type(layer.quant_method).__name__} rounds what the projection is given by a scale that emovllm does "
        f"not know of, so that a circuit cannot be folded through it exactly; {_REMEDY}"
    )


_REMEDY = "serve another quantisation of the model, or the original"


def _more(given: float, dtype: torch.dtype) -> float:
    """Twice as much, where the type has it."""
    return float(min(2 * given, torch.finfo(dtype).max))


def _largest_inputs(layer: Any) -> list[float]:
    """The largest input in magnitude that each fixed scale beside a weight stands for, by each format that it may be
    meant for; empty where there is no such scale."""
    largest = []
    if (inverse := _number(layer, "input_global_scale_inv")) is not None:
        largest.append(_LARGEST_NVFP4 / inverse)
    if (scale := _number(layer, "input_scale_2")) is not None:
        largest.append(_LARGEST_NVFP4 * scale)
    if (scale := _number(layer, "input_scale")) is not None:
        if (zero := _number(layer, "input_zero_point")) is not None:
            largest.append(max(127 - zero, -128 - zero, key=abs) * scale)
        else:
            largest += [top * scale for top in _LARGEST]
    return largest


def _number(layer: Any, name: str) -> float | None:
    """A scale of a whole tensor; None where there is none."""
    value = getattr(layer, name, None)
    if not isinstance(value, Tensor) or value.numel() != 1:
        return None
    number = float(value)
    return number if name == "input_zero_point" or number > 0 else None


def _equal(found: Tensor, expected: Tensor, limit: float) -> bool:
    return bool((found - expected).norm() <= limit * expected.norm())


def _without_rounded_outputs(layer: Any, apply: Apply) -> Apply:
    """Past the rounding of inputs and outputs that vLLM wraps around a kernel of integer weights."""
    scheme = getattr(layer, "scheme", None)
    if not (getattr(scheme, "has_input_act", False) or getattr(scheme, "has_output_act", False)):
        return apply
    return scheme.kernel.apply_weights  # type: ignore[union-attr, no-any-return]
