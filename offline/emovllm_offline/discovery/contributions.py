"""What each neuron and each head adds along an emotion's direction (arXiv 2510.11328, section 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from emovllm_offline.model.decoder import projection_weight


def neuron_contributions(activation: np.ndarray, down_weight: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Mean contribution of the neurons of one layer to the direction after the MLP.

    A neuron's contribution g * (W_down^T v) is linear in its activation g, so the mean over samples is the
    contribution of the mean.

    activation: mean input of down_proj [emotions, m]; down_weight: [hidden, m]; direction: [emotions, hidden].
    Returns: [emotions, m].
    """
    return activation * (direction @ down_weight)


def head_importance(output: np.ndarray, o_weight: np.ndarray, direction: np.ndarray, heads: int) -> np.ndarray:
    """Drop of the projection on the direction when a head is zeroed, positive where the head drives the emotion.

    Zeroing a head takes W_o[:, head] z_head from the residual after attention, so the drop is the projection of
    just that: no forward is needed, and the mean over samples is the drop of the mean.

    output: mean input of o_proj [emotions, heads * head_dim]; o_weight: [hidden, heads * head_dim];
    direction: [emotions, hidden]. Returns: [emotions, heads].
    """
    along = output * (direction @ o_weight)
    return along.reshape(len(output), heads, -1).sum(-1)


@torch.no_grad()
def normed_head_importance(state: Tensor, output: Tensor, layer: Any, direction: np.ndarray, heads: int) -> np.ndarray:
    """Drop of norm(h) . v when a head is zeroed, norm being what the layer applies after attention.

    state: residual after attention [prompts, hidden]; output: input of o_proj [prompts, heads * head_dim]; layer: a
    `decoder.Layer`; direction: [prompts, hidden]. Returns: float64 [prompts, heads].
    Raises: ValueError where what follows attention is no norm of the residual (OLMo 2).
    """
    norm = layer.after_attention
    if not hasattr(norm, "weight") or norm.weight.shape != state.shape[1:]:
        raise ValueError("the normed head metric needs a norm right after attention, which this architecture lacks")
    weight = projection_weight(layer.o_proj)
    device, dtype = weight.device, weight.dtype
    width = output.shape[1] // heads
    toward = torch.tensor(direction, dtype=torch.float32, device=device)
    h = state.to(device, dtype)
    whole = (norm(h).float() * toward).sum(-1)
    drops = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        without = h - output[:, part].to(device, dtype) @ weight[:, part].T * layer.residual_scale
        drops.append(whole - (norm(without).float() * toward).sum(-1))
    return torch.stack(drops, 1).double().cpu().numpy()
