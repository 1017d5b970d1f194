"""Quantised checkpoints: their weights as plain numbers where Transformers can make them so, else a refusal.

A packed weight, or one without its scales, is not the model's weight: what it gave would be no circuit of the model.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from emovllm.errors import UnsupportedModelError

REMEDY = "discover on the original, unquantised model; its circuit is served with the quantised one too"
# Smaller floats are numbers only with the scales of their blocks.
PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What quantised layers keep beside their weights, or in their place.
_PARTS = re.compile(r"(weight_scale(_inv|_2)?|scale_inv|[._]scales|q?zeros|zero_point|qweight|_packed|absmax|_blocks)$")


def quantization(config: Any) -> dict[str, Any] | None:
    """What a model's configuration says of the quantisation of its weights; None where they are plain."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    return dict(settings) if isinstance(settings, Mapping) else dict(settings.to_dict())


def method_of(settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method", "unknown method")
    return str(getattr(method, "value", method))


def ask_for_plain_weights(config: Any, model: object) -> None:
    """Has `from_pretrained` with this configuration of a quantised model dequantise the weights.

    Raises: UnsupportedModelError where Transformers cannot.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    settings = quantization(config) or {}
    kind = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method_of(settings))
    if kind is None or "dequantize" not in inspect.signature(kind).parameters:
        raise UnsupportedModelError(
            f"{model} is quantised ({method_of(settings)}), and Transformers cannot make plain weights of it: {REMEDY}"
        )
    config.quantization_config = {**settings, "dequantize": True}


def run_plain(network: Any) -> None:
    """Has the layers of a dequantised model compute with their weights alone, in the type of the model."""
    for weight in network.parameters():
        # Experts of MXFP4 come in bfloat16, whatever was asked for.
        if weight.dtype == torch.bfloat16:
            weight.data = weight.data.to(network.dtype)
    for module in network.modules():
        # compressed-tensors goes on to round what its layers are given.
        if hasattr(module, "quantization_scheme"):
            module.quantization_enabled = False


@contextmanager
def told(model: object) -> Iterator[None]:
    """Says what to do where a quantised model does not load. Raises: UnsupportedModelError."""
    try:
        yield
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedModelError(f"{model} is quantised, and was not dequantised ({reason}): {REMEDY}") from None


def require_no_scales(unread: Collection[str], model: object) -> None:
    """unread: the names of a checkpoint's tensors that the loaded model has no place for.

    Raises: UnsupportedModelError where they are of quantised weights which no configuration tells of.
    """
    parts = sorted(name for name in unread if _PARTS.search(name))
    if parts:
        raise UnsupportedModelError(
            f"{model} is quantised, and its config.json does not say how: {parts[0]} would be ignored; {REMEDY}"
        )
