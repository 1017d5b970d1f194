"""How many neurons and heads each layer gives to a circuit (arXiv 2510.11328, section 7).

The rule reproduces the published allocation of Llama-3.2-3B exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emovllm_offline.discovery.parameters import CAP, LEAST_HEADS, LEAST_NEURONS, NEURON_SHARE, PER_SUBLAYER


@dataclass(frozen=True, slots=True)
class Allocation:
    """Units per layer, int64 [layers] each."""

    neurons: np.ndarray
    heads: np.ndarray


def allocate(
    importance: np.ndarray,
    neurons_per_layer: int | Sequence[int],
    heads_per_layer: int | Sequence[int],
    per_sublayer: float = PER_SUBLAYER,
    neuron_share: float = NEURON_SHARE,
    least_neurons: int = LEAST_NEURONS,
    least_heads: int = LEAST_HEADS,
    cap: float = CAP,
) -> Allocation:
    """Shares the budget K = per_sublayer * 2L: neuron_share of it over the MLPs, the rest over the attentions.

    Where some layers have no neurons, or no heads, the others share what a model of so many has.

    importance: [2L] of one emotion, in the order A0, M0, A1, ...
    neurons_per_layer, heads_per_layer: of all layers, or of each, 0 where it has none.
    """

    def budgets(available: int | Sequence[int]) -> tuple[int, int]:
        layers = int(np.count_nonzero(np.broadcast_to(available, len(importance) // 2)))
        total = round(per_sublayer * 2 * layers)
        neurons = round(neuron_share * total)
        return neurons, total - neurons

    neurons, heads = budgets(neurons_per_layer)[0], budgets(heads_per_layer)[1]
    return Allocation(
        neurons=share(importance[1::2], neurons, least_neurons, neurons_per_layer, cap),
        heads=share(importance[0::2], heads, least_heads, heads_per_layer, cap),
    )


def share(
    importance: np.ndarray, budget: int, least: int, available: int | Sequence[int], cap: float = CAP
) -> np.ndarray:
    """Shares a budget over layers: `least` each, the rest in proportion to max(importance, 0).

    Fractions are settled by largest remainder (the earlier layer first where equal). What one layer gets beyond
    `least` is at most max(1, cap x budget) and at most what is available there; what that leaves over goes to the other
    layers by the same rule, but never to one without importance, so that some of the budget may stay unspent. `least`
    shrinks where the budget or the layer is too small for it. Without any importance the layers share evenly.

    available: in each layer, or in all alike. Returns: int64 [layers].
    """
    layers = len(importance)
    limit = np.broadcast_to(np.asarray(available, np.int64), layers)
    have = int(np.count_nonzero(limit))
    base = np.minimum(limit, min(least, budget // max(have, 1)))
    room = np.minimum(max(1, int(cap * budget)), limit - base)
    weight = np.where(limit > 0, np.maximum(np.asarray(importance, np.float64), 0), 0)
    if not weight.any():
        weight = (limit > 0).astype(np.float64)
    added = np.zeros(layers, dtype=np.int64)
    rest = budget - int(base.sum())
    while rest > 0 and (open_ := (added < room) & (weight > 0)).any():
        quota = np.where(open_, weight, 0) / weight[open_].sum() * rest
        step = np.minimum(_largest_remainder(quota, rest), room - added)
        added += step
        rest -= int(step.sum())
    return base + added


def _largest_remainder(quota: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers near `quota` (which sums to `total`) that sum to `total`."""
    whole = np.floor(quota).astype(np.int64)
    left = total - int(whole.sum())
    whole[np.argsort(-(quota - whole), kind="stable")[:left]] += 1
    return whole
