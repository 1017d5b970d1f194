"""What the files of circuits and probes say of the model that they belong to."""

from __future__ import annotations

import numpy as np

from emovllm.circuit import Circuit, measure_fingerprint
from emovllm.fingerprint import fingerprint_distance
from emovllm.probe import fingerprint_of
from emovllm.spec import ExpertsSpec, LayerSpec, ModelSpec
from emovllm_offline.model.decoder import Decoder, Layer

# Weights in half precision are within a hundredth of the circuit's fingerprint, another model's far off.
FINGERPRINT_TOLERANCE = 0.05


def model_spec(decoder: Decoder, model_id: str) -> ModelSpec:
    """model_id: the name under which results speak of it; that of its class where it has none."""
    name = type(decoder.model).__name__
    return ModelSpec(
        id=model_id or name,
        architecture=name,
        num_hidden_layers=len(decoder.layers),
        hidden_size=decoder.hidden_size,
        intermediate_size=decoder.intermediate_size,
        num_attention_heads=decoder.num_heads,
        head_dim=decoder.head_dim,
        vocab_size=decoder.config.vocab_size,
        layers=_layer_specs(decoder),
    )


def model_size(decoder: Decoder) -> dict[str, int]:
    """What provenance says of it: parameters of the whole model, tied ones once; layers; hidden, the stream's width."""
    parameters = sum(parameter.numel() for parameter in decoder.model.parameters())
    return {"parameters": parameters, "layers": len(decoder.layers), "hidden": decoder.hidden_size}


def model_fingerprint(decoder: Decoder) -> dict[str, np.ndarray]:
    """By which a probe's model is recognised: over all projections that there are."""
    sites = [
        (kind, number)
        for number, layer in enumerate(decoder.layers)
        for kind, projection in (("attn", layer.o_proj), ("mlp", layer.down_proj))
        if projection is not None
    ]
    return fingerprint_of(sites, decoder.projection)


def is_of(circuit: Circuit, decoder: Decoder) -> bool:
    """Whether it is this model's circuit."""
    model = circuit.spec.model
    sizes = [model.layer(number) for number in range(model.num_hidden_layers)]
    if len(sizes) != len(decoder.layers) or not all(map(_fits, sizes, decoder.layers)):
        return False
    measured = measure_fingerprint(circuit, decoder.projection)
    return fingerprint_distance(measured, circuit.fingerprint) < FINGERPRINT_TOLERANCE


def _fits(spec: LayerSpec, layer: Layer) -> bool:
    # A circuit may be older than what is known of some mixers: it has no heads there.
    heads = (spec.heads, spec.head_dim) in ((layer.heads, layer.head_dim), (0, 0))
    return heads and spec.neurons == layer.neurons


def _layer_specs(decoder: Decoder) -> tuple[LayerSpec, ...] | None:
    """What each layer has, where they differ, or have routed experts that were asked for."""
    specs = tuple(
        LayerSpec(
            neurons=layer.neurons,
            heads=layer.heads,
            head_dim=layer.head_dim,
            attn=layer.attn,
            mlp=layer.mlp,
            experts=ExpertsSpec(count=of.count, neurons=of.neurons, block=of.path) if (of := layer.experts) else None,
        )
        for layer in decoder.layers
    )
    full = (decoder.intermediate_size, decoder.num_heads, decoder.head_dim, None)
    return None if all((spec.neurons, spec.heads, spec.head_dim, spec.experts) == full for spec in specs) else specs
