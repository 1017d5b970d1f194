"""The places of a decoder that discovery reads and perturbs, found by module name in any Hugging Face model."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from emovllm.architectures import parse_site
from emovllm.errors import UnsupportedModelError

# Norms inside a decoder layer, by the names of the architectures that have them.
_PRE_MLP_NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "post_attention_norm")


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer.

    block: its output is the residual after the MLP.
    o_proj, down_proj: their inputs hold the heads' outputs [H * d_h] and the gated activations [m].
    after_attention: its input is the residual after attention.
    attention_writer: its output, times `residual_scale`, is what attention adds to the residual.
    """

    block: nn.Module
    o_proj: nn.Module
    down_proj: nn.Module
    after_attention: nn.Module
    attention_writer: nn.Module
    residual_scale: float


@dataclass(frozen=True, slots=True)
class Decoder:
    """A causal language model with its layers; `sublayers` is 2L in the order A0, M0, A1, M1, ..."""

    model: Any
    layers: tuple[Layer, ...]
    hidden_size: int
    intermediate_size: int
    num_heads: int
    head_dim: int

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
    """Finds the sublayers of a causal language model.

    Raises: UnsupportedModelError, naming what is missing (mixture-of-experts MLPs, say, have no single down_proj).
    """
    name = type(model).__name__
    modules = dict(model.named_modules())
    sites: dict[tuple[str, int], str] = {}
    for path in modules:
        site = parse_site(path)
        if site is None:
            continue
        if site in sites:
            raise UnsupportedModelError(
                f"{name}: both {sites[site]} and {path} are the {site[0]} projection of a layer"
            )
        sites[site] = path
    count = model.config.get_text_config().num_hidden_layers
    for kind, projection in (("attn", "o_proj"), ("mlp", "down_proj")):
        missing = [layer for layer in range(count) if (kind, layer) not in sites]
        if missing:
            raise UnsupportedModelError(
                f"{name}: no {projection} was found in {len(missing)} of {count} layers "
                f"(the first is layer {missing[0]})"
            )
    layers = tuple(_layer(modules, sites["attn", i], sites["mlp", i], name) for i in range(count))
    heads = model.config.get_text_config().num_attention_heads
    hidden_size, width = _shape([layer.o_proj for layer in layers], f"{name}: o_proj")
    _, intermediate_size = _shape([layer.down_proj for layer in layers], f"{name}: down_proj")
    if width % heads:
        raise UnsupportedModelError(f"{name}: o_proj takes {width} values, which {heads} heads do not divide")
    return Decoder(model, layers, hidden_size, intermediate_size, heads, width // heads)


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


def _layer(modules: dict[str, Any], o_path: str, down_path: str, name: str) -> Layer:
    attention, mlp = o_path.rpartition(".")[0], down_path.rpartition(".")[0]
    block = modules[attention.rpartition(".")[0]]
    norms = {child: module for child, module in block.named_children() if "norm" in child or child.startswith("ln_")}
    # Gemma 2 and 3 norm the sublayer's output too, OLMo 2 only that: there, the norm's output reaches the residual.
    normed_output = "post_feedforward_layernorm" in norms
    if normed_output and "pre_feedforward_layernorm" not in norms:
        after_attention = modules[mlp]
    else:
        found = next((norms[norm] for norm in _PRE_MLP_NORMS if norm in norms), None)
        if found is None:
            raise UnsupportedModelError(
                f"{name}: no norm between attention and MLP (parallel sublayers are not supported)"
            )
        after_attention = found
    writer = norms["post_attention_layernorm"] if normed_output else modules[attention]
    scale = float(getattr(block, "residual_multiplier", 1.0))
    return Layer(block, modules[o_path], modules[down_path], after_attention, writer, scale)


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
