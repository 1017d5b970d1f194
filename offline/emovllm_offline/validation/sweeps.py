"""Forwards of one token that switch off, or push, the top-k units of every layer (arXiv 2510.11328, figures 3 to 5).

All variants of a prompt differ at its last token only: the tokens before it run once, and every forward then runs that
one token many times over, once for each variant, against their keys and values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from emovllm_offline.data.prompts import Prompt
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.model.decoder import Decoder, repeat_cache
from emovllm_offline.model.hooks import Hook, before, hooked

Mode = Literal["ablation", "enhancement"]
MODES: tuple[Mode, ...] = ("ablation", "enhancement")
KINDS = ("neurons", "heads")
# The score's two variants: the states after attention on its directions, the states after the MLP on theirs.
SITES = ("attn", "mlp")


@dataclass(frozen=True, slots=True)
class Variant:
    """The top `k` units of every layer in the ranking `source`; enhancement pushes them towards `emotion`.

    Sources 0..E-1 rank the units for the emotions, E.. are random rankings, one for each seed.
    """

    kind: str
    source: int
    k: int
    emotion: int


class Swept(NamedTuple):
    """What a sweep of one prompt gave.

    scores: float64 [variants, SITES, E], each the sum over layers of the projections on one emotion's directions.
    states: after the MLP under the first variant, averaged over the positions that count (only the last of them is
    under the variant), float32 [layers, hidden]. last: the same at the last token before any reply.
    """

    scores: np.ndarray
    states: np.ndarray
    last: np.ndarray


class Units:
    """The rankings and difference vectors of all units, on a device.

    `rank[kind]`: a unit's place in its layer, [sources, layers, units]; `delta[kind]`: [E, layers, width];
    `directions[site]`: float32 [E, layers, hidden]; `count[kind]`, `width[kind]`: how many units a layer has, and how
    many inputs of its projection are of each.
    """

    def __init__(self, decoder: Decoder, findings: Findings, seeds: Sequence[int]) -> None:
        device, dtype = decoder.device, decoder.dtype
        self.count = decoder.counts
        self.width = {"neurons": [1] * len(decoder.layers), "heads": [layer.head_dim for layer in decoder.layers]}
        self.rank = {}
        for number, (kind, merit) in enumerate(zip(KINDS, (findings.neurons, findings.heads), strict=True)):
            drawn = [random_ranking(seed, number, self.count[kind], merit.shape[2]) for seed in seeds]
            ranks = np.concatenate([ranking(merit, self.count[kind]), *(draw[None] for draw in drawn)])
            self.rank[kind] = torch.from_numpy(ranks.astype(np.int32)).to(device)
        deltas = {"neurons": findings.mlp_delta, "heads": findings.attn_delta}
        self.delta = {kind: torch.from_numpy(delta).to(device, dtype) for kind, delta in deltas.items()}
        along = {"attn": findings.attn_directions, "mlp": findings.mlp_directions}
        self.directions = {site: torch.from_numpy(vectors).to(device, torch.float32) for site, vectors in along.items()}


def ranking(merit: np.ndarray, count: Sequence[int] | None = None) -> np.ndarray:
    """The place of each unit in its layer, 0 for the greatest merit: [..., layers, units] to the same shape.

    count: how many units each layer has; those beyond come last.
    """
    if count is not None:
        merit = np.where(np.arange(merit.shape[-1]) < np.array(count)[:, None], merit, -np.inf)
    return np.argsort(np.argsort(-merit, axis=-1, kind="stable"), axis=-1, kind="stable")


def random_ranking(seed: int, stream: int, count: Sequence[int], width: int) -> np.ndarray:
    """A uniformly drawn ranking of each layer's `count` units, [layers, width]; those that a layer lacks come last.

    Depends on nothing but the arguments.
    """
    rng = np.random.default_rng([seed, stream])
    return np.stack([np.concatenate([rng.permutation(own), np.arange(own, width)]) for own in count])


@contextmanager
def changed(decoder: Decoder, units: Units, mode: Mode, scale: float, variants: Sequence[Variant]) -> Iterator[None]:
    """Applies one variant to each row of the inputs of every down_proj and o_proj.

    Ablation zeroes the variant's units, enhancement adds `scale` times the emotion's difference vector to them. The
    rows are the inputs' leading axes, flattened: as many as there are variants.
    """
    device = decoder.device
    source = torch.tensor([variant.source for variant in variants], device=device)
    emotion = torch.tensor([variant.emotion for variant in variants], device=device)

    def change(kind: str, layer: int) -> Callable[[Tensor], Tensor]:
        k = torch.tensor([variant.k if variant.kind == kind else 0 for variant in variants], device=device)

        def switch(values: Tensor) -> Tensor:
            rows = values.reshape(len(variants), -1)  # [variants, width]
            chosen = units.rank[kind][source, layer, : units.count[kind][layer]] < k[:, None]
            chosen = chosen.to(values.device)  # [variants, units]
            if units.width[kind][layer] > 1:
                chosen = chosen.repeat_interleave(units.width[kind][layer], 1)
            if mode == "ablation":
                rows = rows.masked_fill(chosen, 0)
            else:
                rows = rows + chosen * (scale * units.delta[kind][emotion, layer, : rows.shape[1]]).to(values.device)
            return rows.reshape(values.shape)

        return switch

    hooks: list[Hook] = []
    for i, layer in enumerate(decoder.layers):
        projections = {"neurons": layer.down_proj, "heads": layer.o_proj}
        hooks += [before(module, change(kind, i)) for kind, module in projections.items() if module is not None]
    with hooked(hooks):
        yield


@contextmanager
def watched(decoder: Decoder, see: Callable[[str, int, Tensor], None]) -> Iterator[None]:
    """Calls `see(site, layer, hidden)` with the residual after every attention and every MLP, [..., hidden]."""

    def seen(site: str, layer: int) -> Callable[[Tensor], None]:
        return lambda hidden: see(site, layer, hidden)

    hooks: list[Hook] = []
    for i, layer in enumerate(decoder.layers):
        hooks += [*layer.seen_after_attention(seen("attn", i)), *layer.seen_after_mlp(seen("mlp", i))]
    with hooked(hooks):
        yield


@torch.no_grad()
def sweep(
    decoder: Decoder,
    prompt: Prompt,
    units: Units,
    mode: Mode,
    variants: Sequence[Variant],
    scale: float = 1.0,
    batch_size: int = 128,
) -> Swept:
    """The scores of every variant at the last token of a prompt, the last of the positions that count."""
    states, last = torch.zeros(2, len(decoder.layers), decoder.hidden_size, device=decoder.device)
    totals: dict[str, Tensor] = {}

    def keep(site: str, layer: int, hidden: Tensor) -> None:
        if site == "mlp":
            states[layer] += hidden[0, prompt.positions.start :].float().sum(0).to(states.device)
            if prompt.reply:
                last[layer] = hidden[0, prompt.last]

    def score(site: str, layer: int, hidden: Tensor) -> None:
        rows = hidden.reshape(-1, hidden.shape[-1]).float().to(states.device)  # [variants, hidden]
        along = (rows @ units.directions[site][:, layer].T).double()
        totals[site] = totals[site] + along if site in totals else along
        if site == "mlp" and not batches:
            states[layer] += rows[0]
            if not prompt.reply:
                last[layer] = rows[0]

    with watched(decoder, keep):
        cache = decoder.prefix_cache(prompt.ids[:-1])
    batches: list[Tensor] = []
    for start in range(0, len(variants), batch_size):
        batch = variants[start : start + batch_size]
        totals.clear()
        with changed(decoder, units, mode, scale, batch), watched(decoder, score):
            repeat_last(decoder, cache, prompt.ids[-1], len(prompt.ids) - 1, len(batch))
        batches.append(torch.stack([totals[site] for site in SITES], 1))
    return Swept(torch.cat(batches).cpu().numpy(), (states / len(prompt.positions)).cpu().numpy(), last.cpu().numpy())


def repeat_last(decoder: Decoder, cache: DynamicCache, token: int, position: int, rows: int) -> None:
    """Runs one token `rows` times at once, each time as the only successor of the cached prefix.

    The rows are one sequence of tokens that all have the same position and see the prefix and themselves: so the
    prefix is neither copied nor read once per row, which costs more than the token itself. A prefix that outgrew an
    attention window has its oldest tokens hidden by rules of the architecture; then the rows are a batch, as they are
    where the architecture reads positions off the mask, or where layers keep a state, of which each row has its own.
    """
    trunk = decoder.trunk
    if not position:
        trunk(input_ids=torch.full((rows, 1), token, device=decoder.device), use_cache=False)
        return
    outgrown = any(getattr(layer, "is_sliding", False) and position >= layer.sliding_window for layer in cache.layers)
    if decoder.recurrent or decoder.alibi or outgrown:
        trunk(
            input_ids=torch.full((rows, 1), token, device=decoder.device),
            position_ids=torch.full((1, 1), position, device=decoder.device),
            past_key_values=repeat_cache(cache, rows) if decoder.recurrent else _frozen(cache),
            use_cache=True,
        )
        return
    dtype = decoder.dtype
    hidden = torch.full((rows, rows), torch.finfo(dtype).min, dtype=dtype, device=decoder.device).fill_diagonal_(0)
    seen = torch.zeros(rows, position, dtype=dtype, device=decoder.device)
    trunk(
        input_ids=torch.full((1, rows), token, device=decoder.device),
        position_ids=torch.full((1, rows), position, device=decoder.device),
        attention_mask=torch.cat([seen, hidden], 1)[None, None],
        past_key_values=_frozen(cache),
        use_cache=True,
    )


def _frozen(cache: DynamicCache) -> DynamicCache:
    """A view of a batch-1 cache that any batch may follow, and that keeps nothing of it."""

    def frozen(layer: Any) -> Any:
        def update(keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            old = (part.expand(len(keys), -1, -1, -1) for part in (layer.keys, layer.values))
            new_keys, new_values = (torch.cat(pair, -2) for pair in zip(old, (keys, values), strict=True))
            return new_keys, new_values

        view = copy.copy(layer)
        view.update = update
        return view

    view = copy.copy(cache)
    view.layers = [frozen(layer) for layer in cache.layers]
    return view
