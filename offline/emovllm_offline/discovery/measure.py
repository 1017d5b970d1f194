"""The stages that run the model: activations, heads by re-normed state, sublayer importance; then the findings.

Each stage goes on from its checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emovllm_offline.data.prompts import Prompt, render
from emovllm_offline.data.sev import Item
from emovllm_offline.data.styles import Frame, Style, common_emotions
from emovllm_offline.discovery import contributions, directions
from emovllm_offline.discovery.activations import GroupMeans, collect
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.discovery.importance import gradient_importance, residual_scale, sublayer_importance
from emovllm_offline.discovery.parameters import Parameters
from emovllm_offline.discovery.survival import Accepted
from emovllm_offline.model.decoder import Decoder, projection_weight
from emovllm_offline.storage.checkpoint import UNSAVED, Arrays, Checkpoint


@dataclass(frozen=True, slots=True)
class Group:
    """One scenario-event in one style: what is compared between the emotions."""

    item: Item
    style: Style
    frames: tuple[tuple[int, Frame], ...]  # (emotion, one of its frames)

    def prompts(self, tokenizer: Any) -> list[Prompt]:
        return [render(tokenizer, frame, self.item.user, self.style.reply_tokens) for _, frame in self.frames]

    @property
    def emotions(self) -> list[int]:
        """The emotion of each prompt."""
        return [emotion for emotion, _ in self.frames]

    def describe(self) -> str:
        """Everything that its activations depend on but the model."""
        frames = [(emotion, frame.model_dump_json()) for emotion, frame in self.frames]
        return f"{self.item.id} {self.item.user} {self.style.reply_tokens} {frames}"


def groups(items: Sequence[Item], styles: Sequence[Style], accepted: Accepted | None = None) -> list[Group]:
    """The groups to measure, in order; with `accepted`, only complete ones, and of these the accepted frames."""
    emotions = common_emotions(styles)
    found = []
    for number, item in enumerate(items):
        for style in styles:
            if accepted is not None and style.name not in accepted.get(item.id, {}):
                continue
            frames = []
            for e, name in enumerate(emotions):
                of_item = style.frames(name, number)
                if accepted is not None:
                    kept = [style.emotions[name][i] for i in accepted[item.id][style.name].get(name, ())]
                    of_item = [frame for frame in of_item if frame in kept]
                frames += [(e, frame) for frame in of_item]
            if {e for e, _ in frames} == set(range(len(emotions))):
                found.append(Group(item, style, tuple(frames)))
    return found


def measure_activations(
    decoder: Decoder,
    tokenizer: Any,
    steps: Sequence[Group],
    batch_size: int,
    checkpoint: Checkpoint = UNSAVED,
    progress: bool = False,
) -> GroupMeans:
    """Sections 2, 3 and 5: the streaming means of every quantity, one group a step."""
    means = GroupMeans(len(set(steps[0].emotions)))
    for group in checkpoint.steps(steps, means, "activations", unit="groups", shown=progress):
        means.add(collect(decoder, group.prompts(tokenizer), batch_size), group.emotions)
    return means


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
    for group in checkpoint.steps(steps, sums, "heads", unit="groups", shown=progress):
        emotion = group.emotions
        state = collect(decoder, group.prompts(tokenizer), batch_size)
        share = np.bincount(emotion, minlength=len(attn))
        for i, layer in enumerate(decoder.layers):
            drop = contributions.normed_head_importance(
                state["attn"][:, i], state["heads"][:, i], layer, attn[np.array(emotion), i], decoder.num_heads
            )
            for e, of_prompt in zip(emotion, drop, strict=True):
                sums["total"][e, i] += of_prompt / share[e]
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
) -> tuple[np.ndarray, np.ndarray]:
    """Section 6 over neutral prompts, one a step. Returns: sigma [2L] and importance [E, 2L], float64."""
    sums = Arrays(total=np.zeros(sublayers.shape[:2]))
    left = checkpoint.steps(prompts, sums, "sublayer importance", unit="prompts", shown=progress)
    if "sigma" not in sums:
        sums["sigma"] = residual_scale(decoder, prompts, batch_size)
    for prompt in left:
        if parameters.importance == "gradient":
            sums["total"] += gradient_importance(decoder, prompt, sublayers, reference)
        else:
            sums["total"] += sublayer_importance(
                decoder, [prompt], sublayers, reference, sums["sigma"], parameters.alphas, batch_size
            )
    return sums["sigma"], sums["total"] / len(prompts)


def neutral_prompts(
    tokenizer: Any, items: Sequence[Item], style: Style, parameters: Parameters, seed: int
) -> list[Prompt]:
    """The prompts that importance is measured on: a sample of the items, with the style's neutral frame."""
    chosen = random.Random(seed).sample(list(items), min(parameters.importance_prompts, len(items)))
    return [render(tokenizer, style.neutral, item.user) for item in chosen]


def linear_contributions(
    decoder: Decoder, means: GroupMeans, attn: np.ndarray, mlp: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sections 3 and 4 from the means: neurons [E, L, m] and heads [E, L, H]."""
    neurons, heads = means.mean("neurons"), means.mean("heads")
    by_neuron, by_head = [], []
    for i, layer in enumerate(decoder.layers):
        down, out = (projection_weight(p).detach().double().cpu().numpy() for p in (layer.down_proj, layer.o_proj))
        by_neuron.append(contributions.neuron_contributions(neurons[:, i], down, mlp[:, i]))
        by_head.append(contributions.head_importance(heads[:, i], out, attn[:, i], decoder.num_heads))
    return np.stack(by_neuron, 1), np.stack(by_head, 1)


def conclude(
    emotions: tuple[str, ...],
    means: GroupMeans,
    attn: np.ndarray,
    mlp: np.ndarray,
    neurons: np.ndarray,
    heads: np.ndarray,
    sigma: np.ndarray,
    importance: np.ndarray,
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
        sigma=sigma,
        importance=importance,
        similarity=directions.similarity(directions.interleave(attn, mlp)),
    )
