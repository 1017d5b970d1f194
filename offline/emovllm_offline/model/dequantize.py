"""Quantised checkpoints: their weights as plain numbers where we or Transformers can make them so, else a refusal.

A packed weight, or one without its scales, is not the model's weight: what it gave would be no circuit of the model.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from emovllm.errors import UnsupportedModelError
from emovllm.quantization import method_of
from emovllm_offline.model.unpack import UNPACKED, UnknownPacking, plain_weights
from emovllm_offline.model.weights import weights_folder

REMEDY = "discover on the original, unquantised model; its circuit is served with the quantised one too"
# What quantised layers keep beside their weights, or in their place; scales of what goes in are no part of these.
_PARTS = re.compile(
    r"(weight_scale(_inv|_2)?|scale_inv|[._]scales|q?zeros|(?<!input_)zero_point|qweight|_packed|absmax|_blocks|"
    r"pre_quant_scale|smoothing_factor)$"
)


def quantization(config: Any, folder: Path | None = None) -> dict[str, Any] | None:
    """What a model's configuration says of the quantisation of its weights; None where they are plain.

    folder: of the model, where a file of its own may say it.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is not None:
        return dict(settings) if isinstance(settings, Mapping) else dict(settings.to_dict())
    file = folder / "hf_quant_config.json" if folder is not None else None
    if file is None or not file.is_file():
        return None
    return {"quant_method": "modelopt", **json.loads(file.read_text()).get("quantization", {})}


def load_plain(kind: Any, config: Any, settings: Mapping[str, Any], folder: str | Path, options: dict[str, Any]) -> Any:
    """A model of a quantised checkpoint with plain weights, in the type that `options` ask for.

    kind: a class of Transformers that has `from_pretrained`, which takes `options` too, or finds one that does.
    Raises: UnsupportedModelError; WeightsError where they cannot be fetched.
    """
    with told(folder):
        if method_of(settings) in UNPACKED:
            network, report = _from_files(kind, config, settings, folder, options)
        else:
            ask_for_plain_weights(config, folder)
            network, report = kind.from_pretrained(folder, config=config, **options)
    require_no_scales(report["unexpected_keys"], folder)
    if report["missing_keys"]:
        raise UnsupportedModelError(f"{folder} is quantised, and has no {min(report['missing_keys'])}: {REMEDY}")
    run_plain(network)
    return network


def _from_files(
    kind: Any, config: Any, settings: Mapping[str, Any], folder: str | Path, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    from transformers import GenerationConfig

    place = weights_folder(folder)
    dtype = options["dtype"] if options["dtype"] != "auto" else config.get_text_config().dtype or torch.float32
    weights = plain_weights(place, settings, dtype)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    network, report = kind._model_mapping[type(config)].from_pretrained(
        None, config=config, state_dict=weights, **{**options, "dtype": dtype}
    )
    # Which is read where a model is named, and no weights are given.
    if (place / "generation_config.json").is_file():
        network.generation_config = GenerationConfig.from_pretrained(place)
    return network, report


def ask_for_plain_weights(config: Any, model: object) -> None:
    """Has `from_pretrained` with this configuration of a quantised model dequantise the weights.

    Raises: UnsupportedModelError where Transformers cannot.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    settings = quantization(config) or {}
    kind = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method_of(settings))
    if kind is None or "dequantize" not in inspect.signature(kind).parameters:
        raise UnsupportedModelError(
            f"{model} is quantised ({method_of(settings)}), and nothing here makes plain weights of it: {REMEDY}"
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
    except (ImportError, NotImplementedError, RuntimeError, UnknownPacking, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedModelError(f"{model} is quantised, and was not dequantised ({reason}): {REMEDY}") from None


def require_no_scales(unread: Collection[str], model: object) -> None:
    """unread: the names of a checkpoint's tensors that the loaded model has no place for.

    Raises: UnsupportedModelError where they are of quantised weights, of which the configuration does not tell.
    """
    parts = sorted(name for name in unread if _PARTS.search(name))
    if parts:
        raise UnsupportedModelError(
            f"{model} is quantised, and its config.json does not say how: {parts[0]} would be ignored; {REMEDY}"
        )
