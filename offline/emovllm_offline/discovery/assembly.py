"""From findings to a circuit: the allocation's share of each layer, the best units there, their difference vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emovllm.circuit import Circuit, Components
from emovllm.errors import AssemblyError
from emovllm.models import QUANTIZATION, is_default
from emovllm.spec import CircuitSpec, EmotionSpec, LayerSpec, ModelSpec
from emovllm_offline.discovery.allocation import allocate
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.discovery.parameters import Parameters
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.model.dequantize import method_of, quantization


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
    of_layers = decoder.counts
    neurons, heads = {}, {}
    for e, name in enumerate(findings.emotions):
        shares = allocate(
            findings.importance[e],
            of_layers["neurons"],
            of_layers["heads"],
            parameters.per_sublayer,
            parameters.neuron_share,
            parameters.least_neurons,
            parameters.least_heads,
            parameters.cap,
        )
        neurons[name] = _units(findings.neurons[e], shares.neurons, findings.mlp_delta[e], of_layers["neurons"])
        by_head = heads_apart(decoder, findings.attn_delta[e])
        heads[name] = _units(findings.heads[e], shares.heads, by_head, of_layers["heads"])
    if not any(units.delta.any() for units in (*neurons.values(), *heads.values())):
        raise AssemblyError(
            "every delta of the circuit is zero, it would change nothing: the prompts of all emotions were the same to "
            "the model; see what the style's frames and the tokenizer's chat template make of them"
        )
    spec = CircuitSpec(
        model=ModelSpec(
            id=model_id or type(decoder.model).__name__,
            architecture=type(decoder.model).__name__,
            num_hidden_layers=len(decoder.layers),
            hidden_size=decoder.hidden_size,
            intermediate_size=decoder.intermediate_size,
            num_attention_heads=decoder.num_heads,
            head_dim=decoder.head_dim,
            vocab_size=decoder.config.vocab_size,
            layers=layer_specs(decoder),
        ),
        emotions=tuple(_emotion(name, strengths) for name in findings.emotions),
        scope=parameters.scope,
        provenance={**provenance, **_precision(decoder, model_id), "groups": findings.groups},
    )

    directions = dict(zip(findings.emotions, findings.mlp_directions.astype(np.float32), strict=True))
    return Circuit.fingerprinted(
        spec, neurons, heads, decoder.projection, directions if parameters.directions else None
    )


def _precision(decoder: Decoder, model_id: str) -> dict[str, str]:
    """Of which quantisation the weights are, where they are of one: a server then expects others to differ."""
    if is_default(model_id):
        return {"quantization": QUANTIZATION}
    settings = quantization(decoder.config)
    method = method_of(settings) if settings else getattr(decoder.config, "dequantized_from", None)
    return {"quantization": method} if method else {}


def _emotion(name: str, strengths: Mapping[str, tuple[float, float]]) -> EmotionSpec:
    if name not in strengths:
        return EmotionSpec(name=name)
    recommended, maximal = strengths[name]
    return EmotionSpec(name=name, recommended=recommended, maximal=maximal)


def layer_specs(decoder: Decoder) -> tuple[LayerSpec, ...] | None:
    """What each layer has, where they differ."""
    specs = tuple(
        LayerSpec(neurons=layer.neurons, heads=layer.heads, head_dim=layer.head_dim, attn=layer.attn, mlp=layer.mlp)
        for layer in decoder.layers
    )
    full = (decoder.intermediate_size, decoder.num_heads, decoder.head_dim)
    return None if all((spec.neurons, spec.heads, spec.head_dim) == full for spec in specs) else specs


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
