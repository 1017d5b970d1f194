"""What each neuron and each head adds along an emotion's direction (arXiv 2510.11328, section 5)."""

from __future__ import annotations

import numpy as np


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
