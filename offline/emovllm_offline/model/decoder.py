"""The places of a decoder that discovery reads and perturbs."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from emovllm_offline.model.experts import Experts
from emovllm_offline.model.hooks import Hook, after, before
from emovllm_offline.model.load import context_of
from emovllm_offline.model.output_norm import OutputNorm


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer.

    block: its output is the residual after the MLP.
    o_proj, down_proj: their inputs hold the heads' outputs [H * d_h] and the gated activations [m]; None where the
        layer has none. A layer with another mixer than attention has that one's output projection for o_proj.
    heads, head_dim, neurons: how many of them there are, 0 where none. attn, mlp: the projections' paths in the layer.
    after_attention: its input is the residual after attention; None where nothing reads that residual, because
        attention and MLP are parallel, or the layer is one of them alone.
    attention_writer, mlp_writer: their outputs, times `attention_scale` and `mlp_scale`, are what the sublayers add to
        the residual. None where a layer is the other sublayer alone: the residual is the same before and after.
    attention_beside: what writes to the residual along with attention, and what its output is multiplied by.
    mlp_beside: a module whose output is added to that of the MLP's writer, if any.
    attention_norm, mlp_norm: what the writers do to the output of o_proj and down_proj where they are norms of it.
    experts: the routed experts in the MLP's place, where they were asked for.
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
    attention_writer: nn.Module | None
    mlp_writer: nn.Module | None
    attention_beside: tuple[nn.Module, float] | None
    mlp_beside: nn.Module | None
    attention_scale: float
    mlp_scale: float
    attention_norm: OutputNorm | None
    mlp_norm: OutputNorm | None
    experts: Experts | None

    def seen_after_attention(self, see: Callable[[Tensor], None]) -> list[Hook]:
        """Hooks that hand `see` the residual after attention, [..., hidden]."""
        if self.after_attention is not None:
            return [before(self.after_attention, see)]
        if self.attention_writer is None:
            return [before(self.block, see)]
        if self.mlp_writer is None:
            return [after(self.block, see)]
        into: list[Tensor] = []

        def add(written: Tensor) -> None:
            # What a layer is given may lie on the device of the one before.
            see(into.pop().to(written.device) + written * self.attention_scale)

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
    def present(self) -> list[bool]:
        """Which of the sublayers the model has."""
        return [writer is not None for layer in self.layers for writer in (layer.attention_writer, layer.mlp_writer)]

    @property
    def counts(self) -> dict[str, list[int]]:
        """How many `neurons` and `heads` each layer has."""
        return {
            "neurons": [layer.neurons for layer in self.layers],
            "heads": [layer.heads for layer in self.layers],
        }

    @property
    def config(self) -> Any:
        """The language model's own."""
        return self.model.config.get_text_config()

    def most_tokens(self, wanted: int) -> int:
        """So many, or as many as the model takes."""
        return min(wanted, context_of(self.config) or wanted)

    @property
    def device(self) -> torch.device:
        """Where token ids go, and where results come back to. Layers may lie on others."""
        return self.trunk.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.trunk.dtype  # type: ignore[no-any-return]

    def projection(self, kind: str, layer: int) -> np.ndarray:
        """The weight of `attn` (o_proj) or `mlp` (down_proj), float32 [hidden, width]; of `experts` the router's,
        [experts, hidden]."""
        site = self.layers[layer]
        if kind == "experts":
            assert site.experts is not None, f"layer {layer} has no experts"
            weight = site.experts.router_weight
        else:
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


def type_name(dtype: torch.dtype) -> str:
    """The type that a model was run in, for provenance."""
    return str(dtype).removeprefix("torch.")


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


def projection_weight(module: nn.Module) -> Tensor:
    """The weight of a projection as [out, in]."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight


def weights_digest(decoder: Decoder) -> str:
    """Tells models apart: sha256 over evenly spaced entries of every o_proj and down_proj, their shapes and types."""
    projections = (module for layer in decoder.layers for module in (layer.o_proj, layer.down_proj) if module)
    return sampled_digest(map(projection_weight, projections))


def experts_digest(decoder: Decoder) -> str | None:
    """The same of routed experts' down projections; None where none were asked for."""
    experts = [layer.experts for layer in decoder.layers if layer.experts]
    return sampled_digest(of_layer.module.down_proj for of_layer in experts) if experts else None


def sampled_digest(weights: Iterable[Tensor]) -> str:
    """sha256 over evenly spaced entries of each weight, its shape and type."""
    digest = hashlib.sha256()
    for weight in weights:
        entries = weight.detach().flatten()
        # In single precision the last place of a large weight would be rounded to one behind it.
        picked = torch.linspace(0, len(entries) - 1, 64, dtype=torch.float64).long()
        digest.update(f"{weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(entries[picked.to(entries.device)].float().cpu().numpy().tobytes())
    return digest.hexdigest()
