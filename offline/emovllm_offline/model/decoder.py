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
    o_proj, down_proj: their inputs hold the heads' outputs [H * d_h] and the gated activations [m].
    after_attention: its input is the residual after attention; None where attention and MLP are parallel. Nothing
        reads that residual then: it is the block's input and what attention adds.
    attention_writer, mlp_writer: their outputs, times `residual_scale`, are what the sublayers add to the residual.
    attention_norm, mlp_norm: what the writers do to the output of o_proj and down_proj where they are norms of it.
    """

    block: nn.Module
    o_proj: nn.Module
    down_proj: nn.Module
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
            see(into.pop() + written * self.residual_scale)

        return [before(self.block, into.append), after(self.attention_writer, add)]

    def seen_after_mlp(self, see: Callable[[Tensor], None]) -> list[Hook]:
        """Hooks that hand `see` the residual after the MLP, [..., hidden]."""
        return [after(self.block, see)]


@dataclass(frozen=True, slots=True)
class Decoder:
    """A causal language model with its layers; `sublayers` is 2L in the order A0, M0, A1, M1, ..."""

    model: Any
    layers: tuple[Layer, ...]
    hidden_size: int
    intermediate_size: int
    num_heads: int
    head_dim: int
    alibi: bool = False  # positions are read off a two-dimensional attention mask

    @property
    def sublayers(self) -> int:
        return 2 * len(self.layers)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def projection(self, kind: str, layer: int) -> np.ndarray:
        """The weight of `attn` (o_proj) or `mlp` (down_proj), float32 [hidden, width]."""
        site = self.layers[layer]
        weight = projection_weight(site.down_proj if kind == "mlp" else site.o_proj)
        return weight.detach().float().cpu().numpy()  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """Runs the decoder without the language model's head; ids: [batch, tokens].

        Returns: the hidden states after the final norm, [batch, tokens, hidden].
        """
        past = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(past, past + ids.shape[1], device=ids.device)[None]
        out = self.model.base_model(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=cache is not None
        )
        return out.last_hidden_state

    def prefix_cache(self, ids: Sequence[int]) -> DynamicCache:
        """The keys and values of a prefix that several sequences share (batch 1)."""
        cache = DynamicCache(config=self.model.config)
        if ids:
            self.forward(torch.tensor([list(ids)], device=self.device), cache)
        return cache


def repeat_cache(cache: DynamicCache, batch: int) -> DynamicCache:
    """A copy of a batch-1 cache for `batch` sequences."""
    repeated = copy.deepcopy(cache)
    if repeated.get_seq_length():
        repeated.batch_repeat_interleave(batch)
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


def _decoder(model: Any, family: Family) -> Decoder:
    name = type(model).__name__
    config = model.config.get_text_config()
    sites = _sites(model, family)
    for kind, projection in (("attn", "o_proj"), ("mlp", "down_proj")):
        missing = [layer for layer in range(config.num_hidden_layers) if (kind, layer) not in sites]
        if missing:
            raise UnsupportedModelError(
                f"{name}: no {projection} was found in {len(missing)} of {config.num_hidden_layers} layers "
                f"(the first is layer {missing[0]})"
            )
    layers = tuple(
        _layer(
            model.get_submodule(sites["attn", i].removesuffix(f".{family.attn}")), family, config, f"{name}: layer {i}"
        )
        for i in range(config.num_hidden_layers)
    )
    heads = config.num_attention_heads
    hidden_size, width = _shape([layer.o_proj for layer in layers], f"{name}: o_proj")
    _, intermediate_size = _shape([layer.down_proj for layer in layers], f"{name}: down_proj")
    if width % heads:
        raise UnsupportedModelError(f"{name}: o_proj takes {width} values, which {heads} heads do not divide")
    decoder = Decoder(model, layers, hidden_size, intermediate_size, heads, width // heads, family.has_alibi(config))
    _check(decoder, name)
    return decoder


def _sites(model: Any, family: Family) -> dict[tuple[str, int], str]:
    """The paths of a family's projections. Raises: UnsupportedModelError where two answer to one name."""
    sites: dict[tuple[str, int], str] = {}
    for path, _ in model.named_modules():
        site = parse_site(path, [family])
        if site is None:
            continue
        if site in sites:
            raise UnsupportedModelError(
                f"{type(model).__name__}: both {sites[site]} and {path} are the {site[0]} projection of a layer"
            )
        sites[site] = path
    return sites


def _layer(block: nn.Module, family: Family, config: Any, where: str) -> Layer:
    def part(path: str) -> nn.Module:
        try:
            return block.get_submodule(path)
        except AttributeError:
            raise UnsupportedModelError(
                f"{where} has no {path}, which models built as {family.model_type} have"
            ) from None

    def norm(path: str | None, width: int) -> OutputNorm | None:
        return None if path is None else read_norm(part(path), width, f"{where}: {path}")

    assert family.mlp is not None, "the layers of a mixture of experts were found to lack a down_proj"
    return Layer(
        block=block,
        o_proj=part(family.attn),
        down_proj=part(family.mlp),
        after_attention=None if family.is_parallel(config) else part(family.before_mlp),
        attention_writer=part(family.attn_norm or family.attn),
        mlp_writer=part(family.mlp_norm or family.mlp),
        residual_scale=family.residual_scale(config),
        attention_norm=norm(family.attn_norm, config.hidden_size),
        mlp_norm=norm(family.mlp_norm, config.hidden_size),
    )


@torch.no_grad()
def _check(decoder: Decoder, name: str) -> None:
    """Runs a few tokens, and refuses a model whose residual is not the sum of what its sublayers write.

    So a model that is built otherwise than its row says, or whose settings change it, is never measured wrongly.
    """
    seen: list[dict[str, Tensor]] = [{} for _ in decoder.layers]

    def keep(layer: int, what: str) -> Callable[[Tensor], None]:
        # A copy: Falcon adds to what its MLP gave in place.
        return lambda values: seen[layer].__setitem__(what, values.float().clone())

    hooks = []
    for i, layer in enumerate(decoder.layers):
        hooks += [before(layer.block, keep(i, "input")), *layer.seen_after_attention(keep(i, "after attention"))]
        hooks += [after(layer.attention_writer, keep(i, "attention")), after(layer.mlp_writer, keep(i, "mlp"))]
        hooks += layer.seen_after_mlp(keep(i, "after mlp"))
        hooks += [
            after(layer.o_proj, keep(i, "attention's projection")),
            after(layer.down_proj, keep(i, "mlp's projection")),
        ]
    with hooked(hooks):
        decoder.forward(torch.arange(_CHECKED_TOKENS, device=decoder.device)[None])
    rounding = _CHECK_ROUNDING * torch.finfo(decoder.model.dtype).eps
    for i, (layer, states) in enumerate(zip(decoder.layers, seen, strict=True)):
        shapes = {tuple(values.shape) for values in states.values()}
        if len(states) < 7 or len(shapes) > 1:
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


def _shape(projections: Sequence[nn.Module], what: str) -> tuple[int, int]:
    """The [out, in] that the projections of all layers share."""
    weights = [projection_weight(projection) for projection in projections]
    if not all(weight.is_floating_point() for weight in weights):
        raise UnsupportedModelError(f"{what} is quantised: discovery needs the plain weights")
    shapes = sorted({tuple(weight.shape) for weight in weights})
    if len(shapes) > 1:
        raise UnsupportedModelError(f"{what} differs in shape from layer to layer: {shapes[0]}, {shapes[1]}")
    out_features, in_features = shapes[0]
    return out_features, in_features


def projection_weight(module: nn.Module) -> Tensor:
    """The weight of a projection as [out, in]."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight


def weights_digest(decoder: Decoder) -> str:
    """Tells models apart: sha256 over evenly spaced entries of every o_proj and down_proj, their shapes and types."""
    digest = hashlib.sha256()
    for layer in decoder.layers:
        for projection in (layer.o_proj, layer.down_proj):
            weight = projection_weight(projection).detach()
            entries = weight.flatten()
            picked = torch.linspace(0, len(entries) - 1, 64).long()
            digest.update(f"{weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(entries[picked.to(entries.device)].float().cpu().numpy().tobytes())
    return digest.hexdigest()
