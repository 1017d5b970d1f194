"""The decoder layers of a loaded vLLM model, and the residual stream after one."""

from __future__ import annotations

import inspect
from collections.abc import Container
from typing import Any, NamedTuple

from torch import Tensor, nn

from emovllm.architectures import layer_of, parse_site
from emovllm.errors import Unsupported


class DecoderLayer(NamedTuple):
    """carried: whether layers take the residual of the one before, so that their two outputs are to be added."""

    number: int
    module: Any
    carried: bool


def decoder_layers(model: nn.Module, wanted: Container[int]) -> list[DecoderLayer]:
    """Those `wanted` that this rank holds. Raises: Unsupported."""
    paths: dict[int, str] = {}
    for name, _ in model.named_modules():
        site, layer = parse_site(name), layer_of(name)
        if site is None or layer is None or site[1] not in wanted:
            continue
        if paths.setdefault(site[1], layer) != layer:
            raise Unsupported(f"{layer}: two layers have its number; this architecture cannot be steered or read")
    layers = [(number, model.get_submodule(path)) for number, path in sorted(paths.items())]
    return [
        DecoderLayer(number, module, "residual" in inspect.signature(module.forward).parameters)
        for number, module in layers
    ]


def parts(layer: Any, output: Any, carried: bool) -> tuple[Tensor, Tensor | None]:
    """The two parts of the residual stream after a layer; the second is None where the first is the stream.

    Raises: Unsupported.
    """
    if isinstance(output, Tensor):
        return output, None
    if isinstance(output, tuple) and len(output) == 2 and all(isinstance(part, Tensor) for part in output):
        hidden, residual = output
        return hidden, residual if carried else None  # StableLM's second output is of no more use
    raise Unsupported(
        f"{type(layer).__name__}: it returns neither the residual stream nor its two parts; start without "
        '"steering" and "readout"'
    )
