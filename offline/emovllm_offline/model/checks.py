"""Holds a model to what its row of the table of families says, by what it does with a few tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from emovllm.errors import UnsupportedModelError
from emovllm_offline.model.decoder import Decoder, Layer
from emovllm_offline.model.hooks import after, before, given, hooked

# How many tokens are run, and how many roundings the sums may be off by.
_CHECKED_TOKENS = 4
_CHECK_ROUNDING = 16
# How far what follows a kept state may be off, of the largest value: no rounding is as much.
_CHECK_STATE = 0.2


@torch.no_grad()
def check_sublayers(decoder: Decoder, name: str) -> None:
    """Runs a few tokens, and refuses a model whose residual is not the sum of what its sublayers write.

    So a model that is built otherwise than its row says, or whose settings change it, is never measured wrongly.
    """
    rounding = _CHECK_ROUNDING * torch.finfo(decoder.dtype).eps
    for i, (layer, states) in enumerate(zip(decoder.layers, _states(decoder, name), strict=True)):
        shapes = {tuple(values.shape) for values in states.values()}
        some = (layer.attention_writer, layer.mlp_writer, layer.o_proj, layer.down_proj, layer.attention_beside)
        if len(states) < 3 + sum(one is not None for one in some) or len(shapes) > 1:
            raise UnsupportedModelError(f"{name}: the projections of layer {i} are not run on tokens as the layer is")
        nothing = torch.zeros_like(states["input"])
        beside = states["beside attention"] * layer.attention_beside[1] if layer.attention_beside else nothing
        written = {
            "attention": states.get("attention", nothing) * layer.attention_scale + beside,
            "mlp": states.get("mlp", nothing) * layer.mlp_scale,
        }
        for writer, start, end in (("attention", "input", "after attention"), ("mlp", "after attention", "after mlp")):
            wrong = (states[start] + written[writer] - states[end]).abs().max()
            # Values that are not finite are told with their layer where activations are read.
            if wrong > rounding * max(states[end].abs().max(), states[start].abs().max()):
                raise UnsupportedModelError(
                    f"{name}: what the {writer} of layer {i} adds to the residual is not what its row in "
                    "emovllm/architectures.py says; discovery would measure it wrongly"
                )
        _check_norms(layer, states, rounding, f"layer {i} of {name}")


def _states(decoder: Decoder, name: str) -> list[dict[str, Tensor]]:
    """What each layer and its parts are given and give for a few tokens, by name, float32."""
    seen: list[dict[str, Tensor]] = [{} for _ in decoder.layers]

    def keep(layer: int, what: str) -> Callable[[Any], None]:
        def see(values: Any) -> None:
            if not isinstance(values, Tensor):
                raise UnsupportedModelError(
                    f"{name}: layer {layer} hands on a {type(values).__name__}, no hidden states"
                )
            # A copy: Falcon adds to what its MLP gave in place.
            seen[layer][what] = values.float().clone().to(decoder.device)

        return see

    hooks = []
    for i, layer in enumerate(decoder.layers):
        hooks += [before(layer.block, keep(i, "input")), *layer.seen_after_attention(keep(i, "after attention"))]
        hooks += layer.seen_after_mlp(keep(i, "after mlp"))
        outputs = {
            "attention": layer.attention_writer,
            "mlp": layer.mlp_writer,
            "beside attention": layer.attention_beside and layer.attention_beside[0],
            "beside the mlp": layer.mlp_beside,
            "attention's projection": layer.o_proj,
            "mlp's projection": layer.down_proj,
        }
        hooks += [after(module, keep(i, what)) for what, module in outputs.items() if module is not None]
    with hooked(hooks):
        decoder.forward(torch.arange(_CHECKED_TOKENS, device=decoder.device)[None])
    for layer, states in zip(decoder.layers, seen, strict=True):
        # Experts may see the tokens of all sequences in one row.
        if layer.down_proj is None and "mlp" in states and states["mlp"].numel() == states["input"].numel():
            states["mlp"] = states["mlp"].reshape(states["input"].shape)
        if layer.mlp_beside is not None:
            beside = states.pop("beside the mlp")
            states["mlp"] = states["mlp"] + beside.reshape(states["mlp"].shape)
    return seen


@torch.no_grad()
def check_experts(decoder: Decoder, name: str) -> None:
    """Runs a few tokens, and refuses experts that write something else than what is read of them, or whose block does
    not add just that."""
    layers = [(i, layer.experts) for i, layer in enumerate(decoder.layers) if layer.experts is not None]
    seen: dict[nn.Module, list[Any]] = {
        module: [] for _, experts in layers for module in (experts.block, experts.module)
    }
    hooks = [hook for module, see in seen.items() for hook in (given(module, see.append), after(module, see.append))]
    with hooked(hooks):
        decoder.forward(torch.arange(_CHECKED_TOKENS, device=decoder.device)[None])
    rounding = _CHECK_ROUNDING * torch.finfo(decoder.dtype).eps
    for i, experts in layers:
        (arguments, output), (inputs, whole) = seen[experts.module], seen[experts.block]
        with hooked([after(experts.module, torch.zeros_like)]):
            rest = experts.block(*inputs)
        added = whole - (rest[0] if isinstance(rest, tuple) else rest)
        expected = experts.output(arguments)
        wrong = max((values.float().reshape(expected.shape) - expected).abs().max() for values in (output, added))
        if not wrong <= rounding * max(whole.abs().max(), expected.abs().max()):
            raise UnsupportedModelError(
                f"{name}: the experts of layer {i} do not write the sum of routing weight times what each gives; "
                "leave out --experts"
            )


@torch.no_grad()
def check_state(decoder: Decoder, name: str) -> None:
    """Raises: UnsupportedModelError where layers with a state begin anew with several tokens after a cached prefix."""
    if not decoder.recurrent:
        return
    ids = torch.arange(2 * _CHECKED_TOKENS, device=decoder.device)[None]
    whole = decoder.forward(ids)[:, _CHECKED_TOKENS:]
    cache = decoder.prefix_cache(ids[0, :_CHECKED_TOKENS].tolist())
    wrong = (decoder.forward(ids[:, _CHECKED_TOKENS:], cache) - whole).abs().max()
    if wrong > _CHECK_STATE * whole.abs().max():
        raise UnsupportedModelError(
            f"{name}: Transformers forgets the state of its layers between one part of a prompt and the next; "
            "discovery would measure it wrongly"
        )


def _check_norms(layer: Layer, states: dict[str, Tensor], rounding: float, where: str) -> None:
    """Raises: UnsupportedModelError where what norms a sublayer's output is given something else (a gated one, say)."""
    for writer, norm in (("attention", layer.attention_norm), ("mlp", layer.mlp_norm)):
        if norm is None:
            continue
        wrong = (norm(states[f"{writer}'s projection"]) - states[writer]).abs().max()
        if wrong > rounding * states[writer].abs().max():
            raise UnsupportedModelError(
                f"the norm of the {writer}'s output in {where} is given something else than what its projection gives; "
                "discovery would measure it wrongly"
            )
