"""From findings to a circuit: the allocation's share of each layer, the best units there, their difference vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emovllm.circuit import Circuit, Components
from emovllm.errors import AssemblyError
from emovllm.experts import RoutedNeurons
from emovllm.models import QUANTIZATION, is_default
from emovllm.quantization import bits_of, method_of
from emovllm.spec import CircuitSpec, EmotionSpec
from emovllm_offline.discovery.allocation import allocate
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.discovery.parameters import Extraction, Parameters
from emovllm_offline.discovery.routed import divide, fold, routed_counts
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.model.dequantize import quantization
from emovllm_offline.model.spec import model_spec

# What a circuit with routed experts says of itself.
ROUTED = (
    "constant vectors at the output of the experts' block: the sum, over the chosen neurons, of delta times the "
    "neuron's column of its expert's down projection, delta being the difference of routing weight times activation"
)
# What every circuit says of the states that it was found in.
EXTRACTIONS: Mapping[Extraction, str] = {
    "generation": "generation: the states while the model is to write in the emotion",
    "comprehension": "comprehension: the states while the model reads emotional replies as its user's messages, no "
    "system prompt given; the mean over the message's own tokens, as far as the style's span goes",
}


def assemble(
    decoder: Decoder,
    findings: Findings,
    model_id: str,
    strengths: Mapping[str, tuple[float, float]],
    parameters: Parameters,
    provenance: Mapping[str, Any],
) -> Circuit:
    """Chooses the units by the allocation (section 7) and makes the circuit.

    Raises: AssemblyError, also where the circuit would change nothing.
    """
    unknown = sorted(set(strengths) - set(findings.emotions))
    if unknown:
        raise AssemblyError(f"strengths name {', '.join(unknown)}; the emotions are {', '.join(findings.emotions)}")
    neurons, heads = {}, {}
    experts: dict[str, RoutedNeurons] = {}
    for e, name in enumerate(findings.emotions):
        neurons[name], heads[name], routed = _choose(decoder, findings, e, parameters)
        if routed is not None:
            experts[name] = routed
    deltas = [units.delta for units in (*neurons.values(), *heads.values())]
    if not any(delta.any() for delta in (*deltas, *(routed.delta for routed in experts.values()))):
        raise AssemblyError(
            "every delta of the circuit is zero, it would change nothing: the prompts of all emotions were the same to "
            "the model; see what the style's frames and the tokenizer's chat template make of them"
        )
    spec = CircuitSpec(
        model=model_spec(decoder, model_id),
        emotions=tuple(_emotion(name, strengths) for name in findings.emotions),
        scope=parameters.scope,
        provenance={
            **provenance,
            **_precision(decoder, model_id),
            **({"routed experts": ROUTED} if experts else {}),
            "extraction": EXTRACTIONS[findings.extract],
            "groups": findings.groups,
        },
    )
    directions = dict(zip(findings.emotions, findings.mlp_directions.astype(np.float32), strict=True))
    return Circuit.fingerprinted(
        spec, neurons, heads, decoder.projection, directions if parameters.directions else None, experts
    )


def _choose(
    decoder: Decoder, findings: Findings, e: int, parameters: Parameters
) -> tuple[Components, Components, RoutedNeurons | None]:
    """The neurons and heads of one emotion, and neurons of routed experts where they were asked for."""
    counts, of_routed = decoder.counts, routed_counts(decoder)
    shares = allocate(
        findings.importance[e],
        [own + routed for own, routed in zip(counts["neurons"], of_routed, strict=True)],
        counts["heads"],
        parameters.per_sublayer,
        parameters.neuron_share,
        parameters.least_neurons,
        parameters.least_heads,
        parameters.cap,
    )
    own, experts = shares.neurons, None
    if any(of_routed) and (measured := findings.routed) is not None:
        own, chosen = divide(own, findings.neurons[e], measured.contribution[e], counts["neurons"], of_routed)
        units = _units(measured.contribution[e], chosen, measured.delta[e], of_routed)
        experts = fold(decoder, units, measured.routing[e])
    neurons = _units(findings.neurons[e], own, findings.mlp_delta[e], counts["neurons"])
    by_head = heads_apart(decoder, findings.attn_delta[e])
    return neurons, _units(findings.heads[e], shares.heads, by_head, counts["heads"]), experts


def _precision(decoder: Decoder, model_id: str) -> dict[str, Any]:
    """Of which quantisation the weights are, where they are of one: a server then expects others to differ, and by how
    much their bits tell."""
    if is_default(model_id):
        return {"quantization": QUANTIZATION}
    settings = quantization(decoder.config) or getattr(decoder.config, "dequantized_from", None)
    if not settings:
        return {}
    bits = bits_of(settings)
    return {"quantization": method_of(settings), **({"weight_bits": bits} if bits else {})}


def _emotion(name: str, strengths: Mapping[str, tuple[float, float]]) -> EmotionSpec:
    if name not in strengths:
        return EmotionSpec(name=name)
    recommended, maximal = strengths[name]
    return EmotionSpec(name=name, recommended=recommended, maximal=maximal)


def heads_apart(decoder: Decoder, of_layers: np.ndarray) -> np.ndarray:
    """The inputs of o_proj [L, H * head_dim] by head, [L, H, head_dim]: a layer's narrower heads are filled with 0."""
    apart = np.zeros((len(decoder.layers), decoder.num_heads, decoder.head_dim), of_layers.dtype)
    for i, layer in enumerate(decoder.layers):
        own = of_layers[i, : layer.heads * layer.head_dim]
        apart[i, : layer.heads, : layer.head_dim] = own.reshape(layer.heads, layer.head_dim)
    return apart


def _units(score: np.ndarray, counts: np.ndarray, delta: np.ndarray, available: Sequence[int]) -> Components:
    """The best `counts[l]` units of each layer by `score` [L, n], with their `delta` [L, n, ...], in index order.

    available: how many of the n a layer has.
    """
    chosen = [
        np.sort(np.argsort(-of_layer[:own], kind="stable")[:k])
        for of_layer, k, own in zip(score, counts, available, strict=True)
    ]
    layer = np.repeat(np.arange(len(counts)), counts)
    index = np.concatenate(chosen)
    return Components(layer.astype(np.int32), index.astype(np.int32), delta[layer, index].astype(np.float32))
