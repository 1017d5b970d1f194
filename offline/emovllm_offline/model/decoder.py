"""The places of a decoder that discovery reads and perturbs: what the table of families says, held to the model."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from emovllm.architectures import Family, candidates, parse_site
from emovllm.errors import UnsupportedModelError
from emovllm_offline.model.hooks import Hook, after, before, hooked
from emovllm_offline.model.output_norm import OutputNorm, read_norm

# What is run once to see that a model is built as its row says, and how many roundings its sums may be off by.
_CHECKED_TOKENS = 4
_CHECK_ROUNDING = 16


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer.

    block: its output is the residual after the MLP.
    o_proj, down_proj: their inputs hold the heads' outputs [H * d_h] and the gated activations [m]; None where the
        layer has another mixer than attention, or experts.
    heads, head_dim, neurons: how many of them there are, 0 where none. attn, mlp: the projections' paths in the layer.
    after_attention: its input is the residual after attention; None where attention and MLP are parallel. Nothing
        reads that residual then: it is the block's input and what attention adds.
    attention_writer, mlp_writer: their outputs, times `residual_scale`, are what the sublayers add to the residual.
    attention_norm, mlp_norm: what the writers do to the output of o_proj and down_proj where they are norms of it.
    """

    block: nn.Module
    o_proj: nn.Module | None
    down_proj: nn.Module | None
    heads: int
    head_dim: int
    neurons: int
    attn: str
    mlp: str
    after_attention: nn.Module | None
    attention_writer: nn.Module
    mlp_writer: nn.Module
    residual_scale: float
    attention_norm: OutputNorm | None
    mlp_norm: OutputNorm | None

    def seen_after_attention(self, see: Callable[[Tensor], None]) -> list[Hook]:
        """Hooks that hand `see` the residual after attention, [..., hidden]."""
        if self.after_attention is not None:
            return [before(self.after_attention, see)]
        into: list[Tensor] = []

        def add(written: Tensor) -> None:
            # What a layer is given may lie on the device of the one before.
            see(into.pop().to(written.device) + written * self.residual_scale)

        return [before(self.block, into.append), after(self.attention_writer, add)]

    def seen_after_mlp(self, see: Callable[[Tensor], None]) -> list[Hook]:
        """Hooks that hand `see` the residual after the MLP, [..., hidden]."""
        return [after(self.block, see)]


@dataclass(frozen=True, slots=True)
class Decoder:
    """A causal language model with its layers; `sublayers` is 2L in the order A0, M0, A1, M1, ...

    model: as it was loaded; its forward, on text alone, gives the scores of tokens.
    trunk: the language model in it without the head. In a model of several modalities it stands beside their towers.
    intermediate_size, num_heads, head_dim: the largest of all layers.
    alibi: positions are read off a two-dimensional attention mask.
    recurrent: some layers keep a state, which depends on the order of the tokens.
    """

    model: Any
    trunk: Any
    layers: tuple[Layer, ...]
    hidden_size: int
    intermediate_size: int
    num_heads: int
    head_dim: int
    alibi: bool = False
    recurrent: bool = False

    @property
    def sublayers(self) -> int:
        return 2 * len(self.layers)

    @property
    def config(self) -> Any:
        """The language model's own."""
        return self.model.config.get_text_config()

    @property
    def device(self) -> torch.device:
        """Where token ids go, and where results come back to. Layers may lie on others."""
        return self.trunk.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.trunk.dtype  # type: ignore[no-any-return]

    def projection(self, kind: str, layer: int) -> np.ndarray:
        """The weight of `attn` (o_proj) or `mlp` (down_proj), float32 [hidden, width]."""
        site = self.layers[layer]
        projection = site.down_proj if kind == "mlp" else site.o_proj
        assert projection is not None, f"layer {layer} has no {kind} projection"
        weight = projection_weight(projection)
        return weight.detach().float().cpu().numpy()  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """Runs the language model without its head; ids: [batch, tokens].

        Returns: the hidden states after the final norm, [batch, tokens, hidden].
        """
        out = self.trunk(**_inputs(ids, cache))
        return out.last_hidden_state.to(ids.device)

    def scores(self, ids: Tensor, cache: DynamicCache | None = None, last: int = 0) -> Tensor:
        """The scores of the next token, [batch, tokens, vocabulary]; of the `last` tokens alone where it is given."""
        return self.model(**_inputs(ids, cache), logits_to_keep=last).logits.to(ids.device)

    def prefix_cache(self, ids: Sequence[int]) -> DynamicCache:
        """The keys and values of a prefix that several sequences share (batch 1)."""
        cache = DynamicCache(config=self.model.config)
        if ids:
            self.forward(torch.tensor([list(ids)], device=self.device), cache)
        return cache


def _inputs(ids: Tensor, cache: DynamicCache | None) -> dict[str, Any]:
    past = 0 if cache is None else cache.get_seq_length()
    positions = torch.arange(past, past + ids.shape[1], device=ids.device)[None]
    return {"input_ids": ids, "position_ids": positions, "past_key_values": cache, "use_cache": cache is not None}


def repeat_cache(cache: DynamicCache, batch: int) -> DynamicCache:
    """A copy of a batch-1 cache for `batch` sequences."""
    repeated = copy.deepcopy(cache)
    if repeated.get_seq_length():
        repeated.reorder_cache(torch.zeros(batch, dtype=torch.long))  # type: ignore[arg-type]
    return repeated


def find_decoder(model: Any) -> Decoder:
    """Finds the sublayers of a causal language model, and runs it once to see that they are what they are taken for.

    Raises: UnsupportedModelError, naming what is missing (mixture-of-experts MLPs, say, have no single down_proj) or
        what the model does otherwise than its row of the table says.
    """
    model_type = model.config.get_text_config().model_type
    families = candidates(model_type)
    errors = []
    for family in families:
        try:
            return _decoder(model, family)
        except UnsupportedModelError as error:
            errors.append(error)
    if len(families) == 1:
        raise errors[0]
    raise UnsupportedModelError(
        f"{errors[0]}; the table of architectures has no row for {model_type}, and none of its rows fits"
    )


def trunk_of(model: Any) -> Any:
    """The language model in a model, without its head."""
    return model.get_decoder()


def _decoder(model: Any, family: Family) -> Decoder:
    name = type(model).__name__
    config = model.config.get_text_config()
    trunk = trunk_of(model)
    sites = _sites(trunk, family)
    kinds = {kind for kind, _ in sites}
    if "attn" not in kinds or (family.mlp is not None and family.experts is None and "mlp" not in kinds):
        missing = "o_proj" if "attn" not in kinds else "down_proj"
        raise UnsupportedModelError(f"{name}: no {missing} was found in {config.num_hidden_layers} layers")
    first = next(iter(sites.values()))
    stack = first[: first.rindex(f".{_layer_number(sites, first)}.")]
    layers = tuple(
        _layer(trunk.get_submodule(f"{stack}.{i}"), family, config, f"{name}: layer {i}")
        for i in range(config.num_hidden_layers)
    )
    decoder = Decoder(
        model,
        trunk,
        layers,
        config.hidden_size,
        # A model without neurons that a circuit acts on has the width of its experts, or of what its settings say.
        max(layer.neurons for layer in layers) or config.intermediate_size,
        max(layer.heads for layer in layers),
        max(layer.head_dim for layer in layers),
        family.has_alibi(config),
        any(layer.o_proj is None for layer in layers),
    )
    _check(decoder, name)
    return decoder


def _layer_number(sites: dict[tuple[str, int], str], path: str) -> int:
    return next(layer for (_, layer), site in sites.items() if site == path)


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


def _layer(block: nn.Module, family: Family, config: Any, where: str) -> Layer:
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
    heads, head_dim = _heads(o_proj[1], config, where) if o_proj else (0, 0)
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
        residual_scale=family.residual_scale(config),
        attention_norm=norm(family.attn_norm, config.hidden_size),
        mlp_norm=norm(family.mlp_norm, config.hidden_size),
    )


def _heads(o_proj: nn.Module, config: Any, where: str) -> tuple[int, int]:
    """How many heads a projection takes, and how wide each is."""
    heads, width = config.num_attention_heads, _weight(o_proj, f"{where}: o_proj").shape[1]
    if width % heads:
        raise UnsupportedModelError(f"{where}: o_proj takes {width} values, which {heads} heads do not divide")
    return heads, width // heads


@torch.no_grad()
def _check(decoder: Decoder, name: str) -> None:
    """Runs a few tokens, and refuses a model whose residual is not the sum of what its sublayers write.

    So a model that is built otherwise than its row says, or whose settings change it, is never measured wrongly.
    """
    seen: list[dict[str, Tensor]] = [{} for _ in decoder.layers]

    def keep(layer: int, what: str) -> Callable[[Tensor], None]:
        # A copy: Falcon adds to what its MLP gave in place.
        return lambda values: seen[layer].__setitem__(what, values.float().clone().to(decoder.device))

    hooks = []
    for i, layer in enumerate(decoder.layers):
        hooks += [before(layer.block, keep(i, "input")), *layer.seen_after_attention(keep(i, "after attention"))]
        hooks += [after(layer.attention_writer, keep(i, "attention")), after(layer.mlp_writer, keep(i, "mlp"))]
        hooks += layer.seen_after_mlp(keep(i, "after mlp"))
        projections = {"attention's projection": layer.o_proj, "mlp's projection": layer.down_proj}
        hooks += [after(module, keep(i, what)) for what, module in projections.items() if module is not None]
    with hooked(hooks):
        decoder.forward(torch.arange(_CHECKED_TOKENS, device=decoder.device)[None])
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
    weight = projection_weight(projection)
    if not weight.is_floating_point():
        raise UnsupportedModelError(f"{what} is quantised: discovery needs the plain weights")
    return weight


def projection_weight(module: nn.Module) -> Tensor:
    """The weight of a projection as [out, in]."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight


def weights_digest(decoder: Decoder) -> str:
    """Tells models apart: sha256 over evenly spaced entries of every o_proj and down_proj, their shapes and types."""
    digest = hashlib.sha256()
    for layer in decoder.layers:
        for projection in filter(None, (layer.o_proj, layer.down_proj)):
            weight = projection_weight(projection).detach()
            entries = weight.flatten()
            picked = torch.linspace(0, len(entries) - 1, 64).long()
            digest.update(f"{weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(entries[picked.to(entries.device)].float().cpu().numpy().tobytes())
    return digest.hexdigest()
