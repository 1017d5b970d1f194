"""Neurons of routed experts: what they add along a direction, and what those that are chosen fold into.

The activation of such a neuron is taken times the routing weight of its token, 0 where the token does not choose the
expert: in that the experts' block is linear, as a dense layer is in its activations. The formulas of sections 3 and 5
of arXiv 2510.11328, and the rule of the budget, then hold as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from emovllm.circuit import Components
from emovllm.experts import RoutedNeurons
from emovllm_offline.discovery import directions
from emovllm_offline.discovery.activations import GroupMeans
from emovllm_offline.discovery.contributions import neuron_contributions
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.model.experts import Experts


def routed_counts(decoder: Decoder) -> list[int]:
    """How many neurons of routed experts each layer has, all experts together."""
    return [layer.experts.count * layer.experts.neurons if layer.experts else 0 for layer in decoder.layers]


def expert_contributions(decoder: Decoder, means: GroupMeans, mlp: np.ndarray) -> np.ndarray:
    """Mean contribution of routed experts' neurons to the directions after the MLP, `mlp` [E, L, hidden].

    Returns: [E, L, neurons of all experts], expert by expert.
    """
    activation = means.mean("experts")
    out = np.zeros_like(activation)
    for i, layer in enumerate(decoder.layers):
        if layer.experts is None:
            continue
        for expert in range(layer.experts.count):
            own = slice(expert * layer.experts.neurons, (expert + 1) * layer.experts.neurons)
            along = neuron_contributions(activation[:, i, own], _columns(layer.experts, expert), mlp[:, i])
            out[:, i, own] = along * layer.mlp_scale
    return out


def with_experts(findings: Findings, decoder: Decoder, means: GroupMeans) -> Findings:
    """Findings with what was measured of routed experts, if they were asked for."""
    if not any(routed_counts(decoder)):
        return findings
    return replace(
        findings,
        experts=expert_contributions(decoder, means, findings.mlp_directions),
        experts_delta=directions.centred(means.difference("experts")),
        routing=means.mean("routing"),
    )


def divide(
    counts: np.ndarray, own: np.ndarray, routed: np.ndarray, available: Sequence[int], routed_available: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """How many of the best `counts[l]` neurons of each layer are in its own MLP, or the expert that all tokens share,
    and how many in routed experts; own, routed: their contributions [L, n], of which a layer has so many as available.
    """
    of_routed = np.zeros_like(counts)
    for layer, count in enumerate(counts):
        first = own[layer, : available[layer]]
        both = np.concatenate([first, routed[layer, : routed_available[layer]]])
        of_routed[layer] = (np.argsort(-both, kind="stable")[:count] >= len(first)).sum()
    return counts - of_routed, of_routed


def fold(decoder: Decoder, units: Components, routing: np.ndarray) -> RoutedNeurons:
    """Neurons by their places among those of all experts of a layer, folded.

    routing: mean routing weights [L, experts] in the emotion.
    """
    vectors = np.zeros((len(decoder.layers), decoder.hidden_size))
    experts, index = np.zeros_like(units.index), np.zeros_like(units.index)
    for i in np.unique(units.layer).tolist():
        layer = decoder.layers[i].experts
        assert layer is not None, f"layer {i} has no experts"
        here = units.layer == i
        experts[here], index[here] = np.divmod(units.index[here], layer.neurons)
        for expert in np.unique(experts[here]).tolist():
            chosen = here & (experts == expert)
            vectors[i] += _columns(layer, expert)[:, index[chosen]] @ units.delta[chosen].astype(np.float64)
    weights = routing[units.layer, experts].astype(np.float32)
    return RoutedNeurons(units.layer, experts, index, units.delta, weights, vectors.astype(np.float32))


def _columns(experts: Experts, expert: int) -> np.ndarray:
    return experts.columns(expert).detach().double().cpu().numpy()  # type: ignore[no-any-return]
