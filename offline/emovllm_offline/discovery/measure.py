"""The stages that run the model: activations, heads by re-normed state, sublayer importance; then the findings.

Each stage goes on from its checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emovllm_offline.data.prompts import Prompt, render
from emovllm_offline.data.sev import Item
from emovllm_offline.data.styles import Style
from emovllm_offline.discovery import contributions, directions, removal
from emovllm_offline.discovery.activations import GroupMeans, collect
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.discovery.groups import Group
from emovllm_offline.discovery.importance import (
    Sublayers,
    gradient_importance,
    residual_scale,
    sublayer_importance,
)
from emovllm_offline.discovery.parameters import Parameters
from emovllm_offline.discovery.removal import Removals, normed_sites
from emovllm_offline.model.decoder import Decoder, projection_weight
from emovllm_offline.model.output_norm import OutputNorm
from emovllm_offline.storage.checkpoint import UNSAVED, Arrays, Checkpoint


def measure_activations(
    decoder: Decoder,
    tokenizer: Any,
    steps: Sequence[Group],
    batch_size: int,
    checkpoint: Checkpoint = UNSAVED,
    progress: bool = False,
) -> GroupMeans:
    """Sections 2, 3 and 5: the streaming means of every quantity, one group a step."""
    sites = normed_sites(decoder)
    means = GroupMeans(len(set(steps[0].emotions)), removal.QUANTITIES | {"routing"})
    for group in checkpoint.steps(steps, means, "activations", unit="groups", shown=progress):
        removals = Removals(sites, _directions_so_far(decoder, means, group.emotions)) if sites else None
        means.add(collect(decoder, group.prompts(tokenizer), batch_size, removals), group.emotions)
    return means


def _directions_so_far(decoder: Decoder, means: GroupMeans, emotion: Sequence[int]) -> dict[str, Tensor]:
    """For each prompt of a group its emotion's direction by the groups before: what `Removals` takes."""
    if not means.groups:
        zero = torch.zeros(len(emotion), len(decoder.layers), decoder.hidden_size)
        return {"heads": zero, "neurons": zero}
    return {
        units: torch.tensor(directions.emotion_directions(means.difference(state))[emotion], dtype=torch.float32)
        for units, state in (("heads", "attn"), ("neurons", "mlp"))
    }


def measure_normed_heads(
    decoder: Decoder,
    tokenizer: Any,
    steps: Sequence[Group],
    attn: np.ndarray,
    batch_size: int,
    checkpoint: Checkpoint = UNSAVED,
    progress: bool = False,
) -> np.ndarray:
    """Section 4 as the authors measured it: the drop of norm(h) . v when a head is taken out of h.

    Not linear in the activations, so it takes a second pass once the directions `attn` [E, L, hidden] are known.
    Returns: float64 [E, L, heads].
    """
    sums = Arrays(total=np.zeros((len(attn), len(decoder.layers), decoder.num_heads)))
    sites = [site for site in normed_sites(decoder) if site.units == "heads"]
    for group in checkpoint.steps(steps, sums, "heads", unit="groups", shown=progress):
        emotion = group.emotions
        toward = attn[np.array(emotion)]
        removals = Removals(sites, {"heads": torch.tensor(toward, dtype=torch.float32)})
        state = collect(decoder, group.prompts(tokenizer), batch_size, removals)
        share = np.bincount(emotion, minlength=len(attn))
        for i, layer in enumerate(decoder.layers):
            if layer.o_proj is None:
                continue
            if layer.attention_norm is None:
                output = state["heads"][:, i, : layer.heads * layer.head_dim]
                writes = contributions.head_writes(output, layer, layer.heads)
            else:
                written, stretch, normed = (state[f"heads {part}"][:, i] for part in removal.PARTS[:3])
                writes = contributions.normed_head_writes(written, stretch, normed, layer)
            drop = contributions.normed_head_importance(state["attn"][:, i], layer, toward[:, i], writes)
            for e, of_prompt in zip(emotion, drop, strict=True):
                sums["total"][e, i, : layer.heads] += of_prompt / share[e]
    return sums["total"] / len(steps)


def measure_importance(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    sublayers: np.ndarray,
    reference: np.ndarray,
    parameters: Parameters,
    batch_size: int,
    checkpoint: Checkpoint = UNSAVED,
    progress: bool = False,
) -> Sublayers:
    """Section 6 over neutral prompts, one a step."""
    sums = Arrays(total=np.zeros(sublayers.shape[:2]))
    left = checkpoint.steps(prompts, sums, "sublayer importance", unit="prompts", shown=progress)
    if "sigma" not in sums:
        sums["sigma"] = residual_scale(decoder, prompts, batch_size)
        if parameters.importance == "exact":
            sums["by alpha"] = np.zeros((*sublayers.shape[:2], len(parameters.alphas)))
    for prompt in left:
        if parameters.importance == "gradient":
            sums["total"] += gradient_importance(decoder, prompt, sublayers, reference)
        else:
            by_alpha = sublayer_importance(
                decoder, [prompt], sublayers, reference, sums["sigma"], parameters.alphas, batch_size
            )
            sums["total"] += by_alpha.mean(-1)
            # What was begun before it was kept goes on without it.
            if "by alpha" in sums:
                sums["by alpha"] += by_alpha
    importance = sums["total"] / len(prompts)
    if "by alpha" not in sums:
        return Sublayers(sums["sigma"], importance)
    return Sublayers(sums["sigma"], importance, sums["by alpha"] / len(prompts), np.array(parameters.alphas))


def neutral_prompts(
    tokenizer: Any, items: Sequence[Item], style: Style, parameters: Parameters, seed: int
) -> list[Prompt]:
    """The prompts that importance is measured on: a sample of the items, with the style's neutral frame."""
    chosen = random.Random(seed).sample(list(items), min(parameters.importance_prompts, len(items)))
    return [render(tokenizer, style.neutral, item.user) for item in chosen]


def unit_contributions(
    decoder: Decoder, means: GroupMeans, attn: np.ndarray, mlp: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sections 3 and 4 from the means: neurons [E, L, m] and heads [E, L, H]."""

    def normed(units: removal.Units, layer: int) -> contributions.NormedMeans:
        return contributions.NormedMeans(*(means.mean(f"{units} {part}")[:, layer] for part in removal.PARTS))

    def gain(norm: OutputNorm) -> np.ndarray:
        return norm.gain.double().cpu().numpy()  # type: ignore[no-any-return]

    by_neuron = np.zeros((len(mlp), len(decoder.layers), decoder.intermediate_size))
    by_head = np.zeros((len(attn), len(decoder.layers), decoder.num_heads))
    for i, layer in enumerate(decoder.layers):
        if layer.down_proj is not None:
            down = _float64(layer.down_proj)
            of_neurons = (
                contributions.neuron_contributions(means.mean("neurons")[:, i, : layer.neurons], down, mlp[:, i])
                if layer.mlp_norm is None
                else contributions.normed_contributions(normed("neurons", i), down, gain(layer.mlp_norm), mlp[:, i])
            )
            by_neuron[:, i, : layer.neurons] = of_neurons * layer.mlp_scale
        if layer.o_proj is not None:
            out = _float64(layer.o_proj)
            outputs = means.mean("heads")[:, i, : layer.heads * layer.head_dim]
            of_heads = (
                contributions.head_importance(outputs, out, attn[:, i], layer.heads)
                if layer.attention_norm is None
                else contributions.normed_contributions(normed("heads", i), out, gain(layer.attention_norm), attn[:, i])
            )
            by_head[:, i, : layer.heads] = of_heads * layer.attention_scale
    return by_neuron, by_head


def _float64(projection: nn.Module) -> np.ndarray:
    return projection_weight(projection).detach().double().cpu().numpy()  # type: ignore[no-any-return]


def conclude(
    emotions: tuple[str, ...],
    means: GroupMeans,
    attn: np.ndarray,
    mlp: np.ndarray,
    neurons: np.ndarray,
    heads: np.ndarray,
    sublayers: Sublayers,
) -> Findings:
    """All stages' results in one."""
    return Findings(
        emotions=emotions,
        groups=means.groups,
        attn_directions=attn,
        mlp_directions=mlp,
        neurons=neurons,
        heads=heads,
        mlp_delta=directions.centred(means.difference("neurons")),
        attn_delta=directions.centred(means.difference("heads")),
        sigma=sublayers.sigma,
        importance=sublayers.importance,
        similarity=directions.similarity(directions.interleave(attn, mlp)),
        importance_by_alpha=sublayers.by_alpha,
        alphas=sublayers.alphas,
    )
