"""Finds the places of a decoder by what the table of families says, and holds the model to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from emovllm.architectures import REFUSED, Family, candidates, layer_of, parse_site
from emovllm.errors import UnsupportedModelError
from emovllm_offline.model.decoder import Decoder, Layer, projection_weight
from emovllm_offline.model.dequantize import REMEDY
from emovllm_offline.model.experts import Experts, find_experts
from emovllm_offline.model.hooks import after, before, given, hooked
from emovllm_offline.model.output_norm import OutputNorm, read_norm
from emovllm_offline.model.unpack import PLAIN

# What is run once to see that a model is built as its row says, and how many roundings its sums may be off by.
_CHECKED_TOKENS = 4
_CHECK_ROUNDING = 16
# How far what follows a kept state may be off, of the largest value: no rounding is as much.
_CHECK_STATE = 0.2


def find_decoder(model: Any, experts: bool = False) -> Decoder:
    """Finds the sublayers of a causal language model, and runs it once to see that they are what they are taken for.

    experts: whether to find the neurons of routed experts too.
    Raises: UnsupportedModelError, naming what is missing or what the model does otherwise than its row of the table
        says.
    """
    model_type = model.config.get_text_config().model_type
    if model_type in REFUSED:
        name, reason = REFUSED[model_type]
        raise UnsupportedModelError(f"{name} is not supported: {reason}")
    families = candidates(model_type)
    errors = []
    for family in families:
        try:
            return _decoder(model, family, experts)
        except UnsupportedModelError as error:
            errors.append(error)
    if len(families) == 1:
        raise errors[0]
    raise UnsupportedModelError(
        f"{errors[0]}; the table of architectures has no row for {model_type}, and none of its rows fits"
    )


def trunk_of(model: Any) -> Any:
    """The language model in a model, without its head."""
    trunk = model.get_decoder()
    # Llama 4's text model calls itself its decoder.
    return model.model if trunk is model else trunk


def _decoder(model: Any, family: Family, experts: bool) -> Decoder:
    name = type(model).__name__
    config = model.config.get_text_config()
    trunk = trunk_of(model)
    sites = _sites(trunk, family)
    kinds = {kind for kind, _ in sites}
    if "attn" not in kinds or (family.mlp is not None and family.experts is None and "mlp" not in kinds):
        missing = "o_proj" if "attn" not in kinds else "down_proj"
        raise UnsupportedModelError(f"{name}: no {missing} was found in {config.num_hidden_layers} layers")
    stack = (layer_of(next(iter(sites.values()))) or "").rpartition(".")[0]
    layers = tuple(
        _layer(trunk.get_submodule(f"{stack}.{i}"), family, config, f"{name}: layer {i}", experts)
        for i in range(config.num_hidden_layers)
    )
    if experts and not any(layer.experts for layer in layers):
        raise UnsupportedModelError(f"{name} has no routed experts: leave out --experts")
    decoder = Decoder(
        model,
        trunk,
        layers,
        config.hidden_size,
        # A model without neurons that a circuit acts on has the width that its settings say, or that of its experts.
        max(layer.neurons for layer in layers)
        or getattr(config, "intermediate_size", None)
        or config.moe_intermediate_size,
        max(layer.heads for layer in layers),
        max(layer.head_dim for layer in layers),
        family.has_alibi(config),
        any(layer.o_proj is None for layer in layers),
    )
    _check(decoder, name)
    _check_state(decoder, name)
    if experts:
        _check_experts(decoder, name)
    return decoder


def _sites(trunk: Any, family: Family) -> dict[tuple[str, int], str]:
    """The paths of a family's projections in the language model.

    Raises: UnsupportedModelError where two answer to one name.
    """
    sites: dict[tuple[str, int], str] = {}
    for path, _ in trunk.named_modules():
        site = parse_site(path, [family])
        if site is None:
            continue
        if site in sites:
            raise UnsupportedModelError(
                f"{type(trunk).__name__}: both {sites[site]} and {path} are the {site[0]} projection of a layer"
            )
        sites[site] = path
    return sites


def _layer(block: nn.Module, family: Family, config: Any, where: str, experts: bool) -> Layer:
    def find(*paths: str | None) -> tuple[str, nn.Module] | None:
        for path in filter(None, paths):
            try:
                return path, block.get_submodule(path)
            except AttributeError:
                continue
        return None

    def part(*paths: str | None) -> tuple[str, nn.Module]:
        one = find(*paths)
        if one is None:
            names = ", nor ".join(filter(None, paths))
            raise UnsupportedModelError(f"{where} has no {names}, which models built as {family.model_type} have")
        return one

    def norm(path: str | None, width: int) -> OutputNorm | None:
        return None if path is None else read_norm(part(path)[1], width, f"{where}: {path}")

    o_proj = find(family.attn)
    down = find(family.mlp, family.shared)
    heads, head_dim = _heads(block, *o_proj, config, where) if o_proj else (0, 0)
    beside = find(family.beside)
    # What experts write is their module's output, whatever of it a projection that they share has.
    writes = down[1] if down and down[0] == family.mlp else part(family.experts or family.mlp)[1]
    return Layer(
        block=block,
        o_proj=o_proj[1] if o_proj else None,
        down_proj=down[1] if down else None,
        heads=heads,
        head_dim=head_dim,
        neurons=_weight(down[1], f"{where}: down_proj").shape[1] if down else 0,
        attn=o_proj[0] if o_proj else "",
        mlp=down[0] if down else "",
        after_attention=None if family.is_parallel(config) else part(family.before_mlp)[1],
        attention_writer=part(family.attn_norm)[1] if family.attn_norm else part(family.attn, *family.mixers)[1],
        mlp_writer=part(family.mlp_norm)[1] if family.mlp_norm else writes,
        mlp_beside=beside[1] if beside else None,
        residual_scale=family.residual_scale(config),
        attention_norm=norm(family.attn_norm, config.hidden_size),
        mlp_norm=norm(family.mlp_norm, config.hidden_size),
        experts=_experts(block, family, where) if experts else None,
    )


def _experts(block: nn.Module, family: Family, where: str) -> Experts | None:
    if family.no_experts:
        raise UnsupportedModelError(
            f"{where}: the routed experts of {family.name} cannot be discovered: {family.no_experts}; "
            "leave out --experts"
        )
    if family.experts is None:
        return None
    if family.mlp_norm is not None:
        raise UnsupportedModelError(f"{where}: the experts' output is normed, which --experts does not follow")
    return find_experts(block.get_submodule(family.experts), family.experts, where)


def _heads(block: nn.Module, path: str, o_proj: nn.Module, config: Any, where: str) -> tuple[int, int]:
    """How many heads a projection takes, and how wide each is: by their width where attention tells it, for layers may
    have more or fewer heads than the configuration says."""
    heads, width = config.num_attention_heads, _weight(o_proj, f"{where}: o_proj").shape[1]
    attention = block.get_submodule(path.rpartition(".")[0])
    for name in ("v_head_dim", "head_dim"):
        head_dim = getattr(attention, name, None)
        if isinstance(head_dim, int) and head_dim and width % head_dim == 0:
            return width // head_dim, head_dim
    if width % heads:
        raise UnsupportedModelError(f"{where}: o_proj takes {width} values, which {heads} heads do not divide")
    return heads, width // heads


@torch.no_grad()
def _check(decoder: Decoder, name: str) -> None:
    """Runs a few tokens, and refuses a model whose residual is not the sum of what its sublayers write.

    So a model that is built otherwise than its row says, or whose settings change it, is never measured wrongly.
    """
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
        hooks += [after(layer.attention_writer, keep(i, "attention")), after(layer.mlp_writer, keep(i, "mlp"))]
        hooks += layer.seen_after_mlp(keep(i, "after mlp"))
        projections = {"attention's projection": layer.o_proj, "mlp's projection": layer.down_proj}
        parts = {**projections, "beside the mlp": layer.mlp_beside}
        hooks += [after(module, keep(i, what)) for what, module in parts.items() if module is not None]
    with hooked(hooks):
        decoder.forward(torch.arange(_CHECKED_TOKENS, device=decoder.device)[None])
    for layer, states in zip(decoder.layers, seen, strict=True):
        # Experts may see the tokens of all sequences in one row.
        if layer.down_proj is None and "mlp" in states and states["mlp"].numel() == states["input"].numel():
            states["mlp"] = states["mlp"].reshape(states["input"].shape)
        if layer.mlp_beside is not None:
            beside = states.pop("beside the mlp")
            states["mlp"] = states["mlp"] + beside.reshape(states["mlp"].shape)
    rounding = _CHECK_ROUNDING * torch.finfo(decoder.dtype).eps
    for i, (layer, states) in enumerate(zip(decoder.layers, seen, strict=True)):
        shapes = {tuple(values.shape) for values in states.values()}
        expected = 5 + (layer.o_proj is not None) + (layer.down_proj is not None)
        if len(states) < expected or len(shapes) > 1:
            raise UnsupportedModelError(f"{name}: the projections of layer {i} are not run on tokens as the layer is")
        for writer, start, end in (("attention", "input", "after attention"), ("mlp", "after attention", "after mlp")):
            wrong = (states[start] + states[writer] * layer.residual_scale - states[end]).abs().max()
            # Values that are not finite are told with their layer where activations are read.
            if wrong > rounding * max(states[end].abs().max(), states[start].abs().max()):
                raise UnsupportedModelError(
                    f"{name}: what the {writer} of layer {i} adds to the residual is not what its row in "
                    "emovllm/architectures.py says; discovery would measure it wrongly"
                )
        _check_norms(layer, states, rounding, f"layer {i} of {name}")


@torch.no_grad()
def _check_experts(decoder: Decoder, name: str) -> None:
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
def _check_state(decoder: Decoder, name: str) -> None:
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


def _weight(projection: nn.Module, what: str) -> Tensor:
    """The weight of a projection as [out, in]. Raises: UnsupportedModelError where it is packed."""
    weight = getattr(projection, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in PLAIN:
        raise UnsupportedModelError(f"{what} is quantised, and discovery needs the plain weights: {REMEDY}")
    return projection_weight(projection)
