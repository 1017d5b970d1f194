"""Packed weights as plain numbers: FP8 with scales, NVFP4, AWQ and GPTQ, from a checkpoint's files.

Transformers needs a kernel or another package for most of these, and takes of FP8 only what has a scale for each block,
whose blocks it deals out evenly. What is not packed as here is told apart by its tensors, and refused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from emovllm.errors import UnsupportedModelError
from emovllm.quantization import method_of

# Smaller floats are numbers only with the scales of their blocks.
PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Of what goes into a layer, or into the cache: weights do not depend on them.
_OF_INPUTS = re.compile(r"\.(input_scale|input_global_scale|activation_scale|output_scale|[qkv]_scale|input_scale_ub)$")
_NVFP4_BLOCK = (1, 16)
_MX_BLOCK = (1, 32)
_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
# Of a word's eight outputs in AWQ's files, the place of each.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)

Parts = Mapping[str, Tensor]


class UnknownPacking(Exception):
    """A layer's tensors are not packed in a way that is known; the message says how."""


def plain_weights(folder: Path, settings: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of a checkpoint's files, each packed weight as the one that it stands for, in `dtype`.

    settings: its quantization_config.
    Raises: UnknownPacking; UnsupportedModelError where there are no files.
    """
    unpack = UNPACKED[method_of(settings)]
    plain: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UnsupportedModelError(f"{folder} has no *.safetensors")
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if not _OF_INPUTS.search(name):
                    layer, _, part = name.rpartition(".")
                    parts[layer][part] = file.get_tensor(name)
    # Each layer's packed tensors are let go of as they are unpacked.
    while parts:
        layer, tensors = parts.popitem()
        try:
            weight, used = unpack(tensors, settings)
        except (KeyError, RuntimeError, ValueError) as error:
            raise UnknownPacking(f"{layer}: {error or type(error).__name__}") from None
        if weight is not None:
            plain[f"{layer}.weight"] = weight.to(dtype)
        for part, tensor in tensors.items():
            if part not in used:
                if tensor.dtype not in PLAIN and (tensor.is_floating_point() or part.endswith("weight")):
                    raise UnknownPacking(f"{layer}.{part} is {tensor.dtype}, packed in a way that is not known")
                plain[f"{layer}.{part}" if layer else part] = tensor
    return plain


Unpacked = tuple[Tensor | None, tuple[str, ...]]


def _scaled(parts: Parts, settings: Mapping[str, Any]) -> Unpacked:
    """FP8 with a scale of any shape, and NVFP4."""
    weight = parts.get("weight")
    if weight is None:
        return None, ()
    if weight.dtype == torch.uint8 and "weight_scale_2" in parts:
        return _nvfp4(parts), ("weight", "weight_scale", "weight_scale_2")
    scales = [part for part in ("weight_scale_inv", "weight_scale", "scale") if part in parts]
    if weight.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2) or not scales:
        return None, ()
    if len(scales) > 1 or weight.dim() != 2:
        raise ValueError(f"a weight of {weight.dim()} dimensions with {', '.join(scales)}")
    scale = parts[scales[0]]
    of_powers = scale.dtype in (torch.uint8, torch.float8_e8m0fnu)
    each = _spread(scale, weight.shape, settings.get("weight_block_size") or (_MX_BLOCK if of_powers else None))
    return weight.float() * each, ("weight", scales[0])


def _spread(scale: Tensor, shape: torch.Size, block: Sequence[int] | None) -> Tensor:
    """A scale for each weight, of one for all, for each output, or for each block; at the ends, blocks may be cut off.

    Raises: ValueError where they do not fit.
    """
    scale = torch.exp2(scale.float() - 127) if scale.dtype == torch.uint8 else scale.float()
    if scale.numel() == 1:
        return scale.reshape(1, 1)
    if scale.shape in ((shape[0],), (shape[0], 1)):
        return scale.reshape(-1, 1)
    if block is None or scale.shape != tuple(-(-size // of) for size, of in zip(shape, block, strict=True)):
        raise ValueError(f"scales {tuple(scale.shape)} of weights {tuple(shape)}")
    rows, columns = block
    return scale.repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(columns, 1)[:, : shape[1]]


def _nvfp4(parts: Parts) -> Tensor:
    packed = parts["weight"]
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()  # [out, in], the lower half first
    values = torch.where(codes >= 8, -1.0, 1.0) * _FP4[codes % 8]
    scale = parts["weight_scale"].float() * parts["weight_scale_2"].float()
    return values * _spread(scale, values.shape, _NVFP4_BLOCK)


def _awq(parts: Parts, settings: Mapping[str, Any]) -> Unpacked:
    if "qweight" not in parts:
        return None, ()
    if settings.get("bits", settings.get("w_bit")) != 4 or str(settings.get("version", "gemm")).lower() != "gemm":
        raise ValueError(f"{settings.get('bits')} bits, version {settings.get('version')}; known: 4 bits, gemm")

    def apart(words: Tensor) -> Tensor:
        return _of_words(words, 4).unflatten(-1, (-1, 8))[..., list(_AWQ_PLACES)].flatten(-2)

    values = apart(parts["qweight"])  # [in, out]
    scales = parts["scales"].float()  # [groups, out]
    zeros = apart(parts["qzeros"]) if "qzeros" in parts else torch.full_like(scales, 8)
    group = len(values) // len(scales)
    each = scales.repeat_interleave(group, 0)
    return ((values - zeros.repeat_interleave(group, 0)) * each).T, ("qweight", "qzeros", "scales")


def _gptq(parts: Parts, settings: Mapping[str, Any]) -> Unpacked:
    if "qweight" not in parts:
        return None, ()
    form = settings.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise ValueError(f"checkpoint_format {form}; known: gptq, gptq_v2")
    words, scales = parts["qweight"], parts["scales"].float()
    # Layers may differ in their bits.
    bits = 32 * len(words) // len(parts["g_idx"]) if "g_idx" in parts else int(settings["bits"])
    if bits not in (2, 4, 8):
        raise ValueError(f"{bits} bits; known: 2, 4, 8")
    values = _of_words(words.T, bits).T  # [in, out]
    zeros = _of_words(parts["qzeros"], bits)  # [groups, out]
    if form == "gptq":
        zeros = (zeros + 1) % 2**bits
    group = parts.get("g_idx")
    if group is None:
        group = torch.arange(len(values)) // (len(values) // len(scales))
    group = group.long()
    return ((values - zeros[group]) * scales[group]).T, ("qweight", "qzeros", "scales", "g_idx")


def _of_words(words: Tensor, bits: int) -> Tensor:
    """The numbers in int32 words, lowest bits first: int [..., words * 32 / bits]."""
    shifts = torch.arange(0, 32, bits)
    return ((words.long() & 0xFFFFFFFF).unsqueeze(-1) >> shifts).remainder(2**bits).flatten(-2)


UNPACKED: dict[str, Callable[[Parts, Mapping[str, Any]], Unpacked]] = {
    "fp8": _scaled,
    "fbgemm_fp8": _scaled,
    "mxfp8": _scaled,
    "modelopt": _scaled,
    "awq": _awq,
    "gptq": _gptq,
}
