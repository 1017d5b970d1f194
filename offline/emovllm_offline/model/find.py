"""Finds the places of a decoder by what the table of families says, and holds the model to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from emovllm.architectures import REFUSED, candidates, layer_of, parse_site
from emovllm.errors import UnsupportedModelError
from emovllm.family import Family, factor
from emovllm_offline.model.checks import check_experts, check_state, check_sublayers
from emovllm_offline.model.decoder import Decoder, Layer, projection_weight
from emovllm_offline.model.dequantize import REMEDY
from emovllm_offline.model.experts import Experts, find_experts
from emovllm_offline.model.output_norm import OutputNorm, read_norm
from emovllm_offline.model.unpack import PLAIN


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
        any(layer.attention_beside or layer.attn in (mixer.projection for mixer in family.mixers) for layer in layers),
    )
    check_sublayers(decoder, name)
    check_state(decoder, name)
    if experts:
        check_experts(decoder, name)
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

    down = find(family.mlp, family.shared)
    mixers = (family.attn, *(mixer.projection for mixer in family.mixers))
    o_proj = find(*mixers) if family.alone and find(family.experts) is not None else part(*mixers)
    heads, head_dim = _heads(block, *o_proj, family, config, where) if o_proj else (0, 0)
    attention_scale, mlp_scale = family.scales(config)
    beside = find(family.beside)
    # What experts write is their module's output, whatever of it a projection that they share has.
    writes: nn.Module | None = None
    if not (family.alone and o_proj):
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
        after_attention=None if family.alone or family.is_parallel(config) else part(family.before_mlp)[1],
        attention_writer=part(family.attn_norm)[1] if family.attn_norm else o_proj and o_proj[1],
        mlp_writer=part(family.mlp_norm)[1] if family.mlp_norm else writes,
        attention_beside=_beside_attention(block, family, config),
        mlp_beside=beside[1] if beside else None,
        attention_scale=attention_scale,
        mlp_scale=mlp_scale,
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


def _beside_attention(block: nn.Module, family: Family, config: Any) -> tuple[nn.Module, float] | None:
    if family.beside_attn is None:
        return None
    path, setting = family.beside_attn
    return block.get_submodule(path), factor(setting, config)


def _heads(
    block: nn.Module, path: str, projection: nn.Module, family: Family, config: Any, where: str
) -> tuple[int, int]:
    """How many heads a projection takes, and how wide each is: by their width where the mixer tells it, for layers may
    have more or fewer heads than the configuration says."""
    width = _weight(projection, f"{where}: {path}").shape[1]
    mixer = block.get_submodule(path.rpartition(".")[0])
    for name in ("v_head_dim", "head_dim"):
        head_dim = getattr(mixer, name, None)
        if isinstance(head_dim, int) and head_dim and width % head_dim == 0:
            return width // head_dim, head_dim
    heads = getattr(config, family.heads_setting(path), None)
    if not heads or width % heads:
        raise UnsupportedModelError(f"{where}: {path} takes {width} values, which {heads} heads do not divide")
    return heads, width // heads


def _weight(projection: nn.Module, what: str) -> Tensor:
    """The weight of a projection as [out, in]. Raises: UnsupportedModelError where it is packed."""
    weight = getattr(projection, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in PLAIN:
        raise UnsupportedModelError(f"{what} is quantised, and discovery needs the plain weights: {REMEDY}")
    return projection_weight(projection)
