"""Weights rounded and packed as quantisation schemes do it, and what is left of them as plain numbers.

Made apart from what reads them, by the formats' own definitions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FP8_LARGEST = 448.0
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
# AWQ's order of outputs in an int32, lowest bits first.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Rounded(NamedTuple):
    """`plain` is float32 [out, in]; `tensors` are what a checkpoint holds in its place, by the names of their ends."""

    plain: Tensor
    tensors: dict[str, Tensor]


def fp8(weight: Tensor, rows: int, columns: int, name: str = "weight_scale") -> Rounded:
    """A float32 scale for each block of rows x columns, 0 for all; blocks at the ends may be smaller."""
    of_all = not rows and not columns
    rows, columns = rows or len(weight), columns or weight.shape[1]
    high, wide = -(-len(weight) // rows), -(-weight.shape[1] // columns)
    padded = torch.zeros(high * rows, wide * columns)
    padded[: len(weight), : weight.shape[1]] = weight
    scale = padded.view(high, rows, wide, columns).abs().amax((1, 3)).clamp(min=1e-12) / FP8_LARGEST
    each = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[: len(weight), : weight.shape[1]]
    packed = (weight / each).to(torch.float8_e4m3fn)
    return Rounded(packed.float() * each, {"weight": packed, name: scale.reshape(1) if of_all else scale})


class Integers(NamedTuple):
    """`values`: [out, groups, group]; `scale`, `zero`: [out, groups, 1]; each weight is (value - zero) * scale."""

    values: Tensor
    scale: Tensor
    zero: Tensor

    @property
    def plain(self) -> Tensor:
        return ((self.values - self.zero) * self.scale).flatten(1)


def integers(weight: Tensor, bits: int, group: int, symmetric: bool, powers: bool = True) -> Integers:
    """From 0 on; a scale for each `group` inputs, 0 for all. Where they are powers of two, 16 bits hold all exactly."""
    groups = weight.view(len(weight), -1, group or weight.shape[1])
    middle, top = 2 ** (bits - 1), 2**bits - 1
    if symmetric:
        scale = groups.abs().amax(-1, keepdim=True) / (middle - 1)
        zero = torch.full_like(scale, middle)
    else:
        least, most = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
        scale = (most - least) / top
        zero = torch.zeros_like(scale)
    scale = scale.clamp(min=1e-12)
    scale = torch.exp2(scale.log2().ceil()) if powers else scale
    if not symmetric:
        zero = (-least / scale).round()
    return Integers(((groups / scale).round() + zero).clamp(0, top), scale, zero)


def in_words(values: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Whole numbers along the last dimension, packed into int32, lowest bits first."""
    count = 32 // bits
    apart = values.to(torch.int64).unflatten(-1, (-1, count))[..., list(order or range(count))]
    words = (apart << (torch.arange(count) * bits)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def packed_integers(weight: Tensor, bits: int = 4, group: int = 32) -> Rounded:
    """compressed-tensors' pack-quantized, symmetric."""
    made = integers(weight, bits, group, symmetric=True)
    tensors = {
        "weight_packed": in_words(made.values.flatten(1), bits),
        "weight_scale": made.scale.squeeze(-1),
        "weight_shape": torch.tensor(weight.shape),
    }
    return Rounded(made.plain, tensors)


def awq(weight: Tensor, bits: int = 4, group: int = 32) -> Rounded:
    made = integers(weight, bits, group, symmetric=False)
    tensors = {
        "qweight": in_words(made.values.flatten(1).T, bits, AWQ_ORDER),
        "qzeros": in_words(made.zero.squeeze(-1).T, bits, AWQ_ORDER),
        "scales": made.scale.squeeze(-1).T.half(),
    }
    return Rounded(made.plain, tensors)


def gptq(
    weight: Tensor, bits: int = 4, group: int = 32, symmetric: bool = True, order: Tensor | None = None
) -> Rounded:
    """Its first format, in which zeros are one less. order: int [in], inputs as they were sorted into groups."""
    order = torch.arange(weight.shape[1]) if order is None else order
    made = integers(weight[:, order], bits, group, symmetric)
    back = torch.argsort(order)
    tensors = {
        "qweight": in_words(made.values.flatten(1)[:, back], bits).T,
        "qzeros": in_words((made.zero.squeeze(-1).T - 1) % 2**bits, bits),
        "scales": made.scale.squeeze(-1).T.half(),
        "g_idx": (back // group).to(torch.int32),
    }
    return Rounded(made.plain[:, back], tensors)


def int8(weight: Tensor) -> Rounded:
    """A scale for each output."""
    scale = weight.abs().amax(-1, keepdim=True) / 127
    values = (weight / scale).round()
    return Rounded(values * scale, {"weight": values.to(torch.int8), "weight_scale": scale})


def to_fp4(values: Tensor) -> Tensor:
    """The nearest of FP4's values (E2M1), as numbers 0 to 15."""
    nearest = (values.abs().unsqueeze(-1) - FP4).abs().argmin(-1)
    return nearest + 8 * (values < 0)


def of_fp4(codes: Tensor) -> Tensor:
    return torch.where(codes >= 8, -1.0, 1.0) * FP4[codes % 8]


def in_bytes(codes: Tensor) -> Tensor:
    return (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8)


def nvfp4(weight: Tensor, modelopt: bool) -> Rounded:
    """An FP8 scale for each 16 inputs and one of the whole, which ModelOpt multiplies by and compressed-tensors divides
    by."""
    groups = weight.view(len(weight), -1, 16)
    whole = weight.abs().max() / (FP8_LARGEST * 6)
    scale = (groups.abs().amax(-1) / 6 / whole).to(torch.float8_e4m3fn)
    each = (scale.float() * whole).unsqueeze(-1)
    codes = to_fp4(groups / each.clamp(min=1e-12))
    packed = in_bytes(codes.flatten(1))
    plain = (of_fp4(codes) * each).flatten(1)
    if modelopt:
        return Rounded(plain, {"weight": packed, "weight_scale": scale, "weight_scale_2": whole})
    tensors = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": (1 / whole).reshape(1)}
    return Rounded(plain, tensors)


def mxfp8(weight: Tensor) -> Rounded:
    """A power of two for each 32 inputs."""
    groups = weight.view(len(weight), -1, 32)
    exponent = groups.abs().amax(-1).clamp(min=1e-12).log2().floor() - 8
    each = torch.exp2(exponent).unsqueeze(-1)
    packed = (groups / each).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn)
    tensors = {"weight": packed.flatten(1), "weight_scale": (exponent + 127).to(torch.uint8)}
    return Rounded((packed.float() * each).flatten(1), tensors)


def mxfp4(weight: Tensor) -> Rounded:
    """A power of two for each 32 inputs."""
    groups = weight.view(len(weight), -1, 32)
    exponent = groups.abs().amax(-1).clamp(min=1e-12).log2().floor() - 2
    each = torch.exp2(exponent).unsqueeze(-1)
    codes = to_fp4(groups / each)
    tensors = {"weight_packed": in_bytes(codes.flatten(1)), "weight_scale": (exponent + 127).to(torch.uint8)}
    return Rounded((of_fp4(codes) * each).flatten(1), tensors)
