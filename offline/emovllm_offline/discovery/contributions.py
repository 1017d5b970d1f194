"""What each neuron and each head adds along an emotion's direction (arXiv 2510.11328, section 5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from emovllm.errors import UnsupportedModelError
from emovllm_offline.model.decoder import Layer, projection_weight


def neuron_contributions(activation: np.ndarray, down_weight: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Mean contribution of the neurons of one layer to the direction after the MLP, where its output is not normed.

    A neuron's contribution g * (W_down^T v) is linear in its activation g, so the mean over samples is the
    contribution of the mean.

    activation: mean input of down_proj [emotions, m]; down_weight: [hidden, m]; direction: [emotions, hidden].
    Returns: [emotions, m].
    """
    return activation * (direction @ down_weight)


def head_importance(output: np.ndarray, o_weight: np.ndarray, direction: np.ndarray, heads: int) -> np.ndarray:
    """Drop of the projection on the direction when a head is zeroed, positive where the head drives the emotion.

    Zeroing a head takes W_o[:, head] z_head from the residual after attention, where attention's output is not normed,
    so the drop is the projection of just that: no forward is needed, and the mean over samples is the drop of the mean.

    output: mean input of o_proj [emotions, heads * head_dim]; o_weight: [hidden, heads * head_dim];
    direction: [emotions, hidden]. Returns: [emotions, heads].
    """
    along = output * (direction @ o_weight)
    return along.reshape(len(output), heads, -1).sum(-1)


class NormedMeans(NamedTuple):
    """Means, over an emotion's samples, of the parts that `removal` reads in one layer of one kind of unit.

    In the order of `removal.PARTS`: [emotions, width], [emotions, units], [emotions, hidden], [emotions, 1],
    [emotions, units].
    """

    written: np.ndarray
    stretch: np.ndarray
    normed: np.ndarray
    along: np.ndarray
    stretch_along: np.ndarray


def normed_contributions(means: NormedMeans, weight: np.ndarray, gain: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Mean drop of the projection on the direction v when a unit is zeroed, where the sublayer's output is normed.

    Of one sample it is (`removal` derives it) written . W_u^T (gain * v) - stretch * (N(y) . v). The first term is
    linear in what is read, and its mean exact. The second is a product of two things that vary between samples, while v
    is known only when all samples have been read. So each was read with v', the direction as of the samples before it:

        mean(stretch * (N(y) . v)) ~ mean(stretch * (N(y) . v')) + mean(stretch) * (mean(N(y)) . v - mean(N(y) . v'))

    which is exact for one sample, or where v' is v, and otherwise off by how stretch and N(y) . (v - v') vary together.

    weight: [hidden, width]; gain: [hidden]; direction: [emotions, hidden]. Returns: [emotions, units].
    """
    emotions, units = means.stretch.shape
    write = (means.written * ((direction * gain) @ weight)).reshape(emotions, units, -1).sum(2)
    unseen = (means.normed * direction).sum(1, keepdims=True) - means.along
    return write - means.stretch_along - means.stretch * unseen


def head_writes(output: Tensor, layer: Layer, heads: int) -> Iterator[Tensor]:
    """What each head adds to the residual, [prompts, hidden]; output: input of o_proj [prompts, heads * head_dim]."""
    assert layer.o_proj is not None
    weight = projection_weight(layer.o_proj)
    width = output.shape[1] // heads
    for start in range(0, output.shape[1], width):
        part = slice(start, start + width)
        yield output[:, part].to(weight) @ weight[:, part].T * layer.attention_scale


def normed_head_writes(written: Tensor, stretch: Tensor, normed: Tensor, layer: Layer) -> Iterator[Tensor]:
    """The same where attention's output is normed: what the residual loses with each head (`removal`, of prompts)."""
    assert layer.attention_norm is not None
    assert layer.o_proj is not None
    weight = projection_weight(layer.o_proj)
    for head, write in enumerate(head_writes(written, layer, stretch.shape[1])):
        stretched = stretch[:, head, None].to(weight) * normed.to(weight)
        yield write * layer.attention_norm.gain.to(weight) - stretched * layer.attention_scale


@torch.no_grad()
def normed_head_importance(state: Tensor, layer: Layer, direction: np.ndarray, writes: Iterable[Tensor]) -> np.ndarray:
    """Drop of norm(h) . v when a head is zeroed, norm being what the layer applies after attention.

    state: residual after attention [prompts, hidden]; direction: [prompts, hidden]; writes: of each head, from
    `head_writes`. Returns: float64 [prompts, heads].
    Raises: UnsupportedModelError where what follows attention is no norm of the residual (OLMo 2).
    """
    norm = layer.after_attention
    if norm is None or not hasattr(norm, "weight") or norm.weight.shape != state.shape[1:]:
        raise UnsupportedModelError(
            "the normed head metric needs a norm right after attention, which this architecture lacks; "
            "give --head-metric residual"
        )
    assert layer.o_proj is not None
    weight = projection_weight(layer.o_proj)
    toward = torch.tensor(direction, dtype=torch.float32, device=weight.device)
    h = state.to(weight)
    whole = (norm(h).float() * toward).sum(-1)
    drops = [whole - (norm(h - write).float() * toward).sum(-1) for write in writes]
    return torch.stack(drops, 1).double().cpu().numpy()
