"""The decoder layers of a loaded vLLM model, and the residual stream after one."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Container
from typing import Any, NamedTuple

from torch import Tensor, nn

from emovllm.architectures import layer_of, parse_site
from emovllm.errors import Unsupported

_RESIDUAL = "residual"


class DecoderLayer(NamedTuple):
    """carried: whether layers go on with the residual of the one before, so that their two outputs are to be added."""

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
    return [DecoderLayer(number, module, takes_residual(type(module))) for number, module in layers]


def takes_residual(layer: Any) -> bool:
    """Whether a class of decoder layers goes on with the residual that it is given. Many of vLLM's take and return one
    by custom, write over it before they read it, and return the whole stream beside it. Raises: Unsupported."""
    forward = inspect.unwrap(layer.forward)
    if _RESIDUAL not in inspect.signature(forward).parameters:
        return False
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(forward))).body
    except (OSError, TypeError, SyntaxError) as error:
        raise Unsupported(
            f"{layer.__name__}: its source cannot be read ({error}), and so nothing tells whether it goes on with the "
            f'residual that it is given; start without "steering" and "readout"'
        ) from None
    assert isinstance(function, ast.FunctionDef)
    for statement in function.body:
        uses = [node.ctx for node in ast.walk(statement) if isinstance(node, ast.Name) and node.id == _RESIDUAL]
        if uses:
            written = isinstance(statement, ast.Assign) and all(isinstance(use, ast.Store) for use in uses)
            return not written
    return False


def parts(layer: Any, output: Any, carried: bool) -> tuple[Tensor, Tensor | None]:
    """The two parts of the residual stream after a layer; the second is None where the first is the stream.

    Raises: Unsupported.
    """
    if isinstance(output, Tensor):
        return output, None
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor):
        hidden, residual = output
        if not carried:
            return hidden, None  # StableLM's second output is of no more use, and Gemma 4's is None
        if isinstance(residual, Tensor):
            return hidden, residual
    raise Unsupported(
        f"{type(layer).__name__}: it returns neither the residual stream nor its two parts; start without "
        '"steering" and "readout"'
    )
