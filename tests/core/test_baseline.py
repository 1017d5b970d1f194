"""Which layers steering acts on, and how far it pushes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emovllm.architectures import layer_of
from emovllm.baseline import steered_layers, steering_vectors
from emovllm.circuit import Circuit, Components
from emovllm.engine.residual import add_steering
from emovllm.spec import CircuitSpec, EmotionSpec, ModelSpec
from support.circuits import random_directions


def circuit(hidden: int) -> Circuit:
    model = ModelSpec(
        id="m",
        architecture="A",
        num_hidden_layers=3,
        hidden_size=hidden,
        intermediate_size=4,
        num_attention_heads=1,
        head_dim=4,
        vocab_size=9,
    )
    spec = CircuitSpec(model=model, emotions=(EmotionSpec(name="anger"), EmotionSpec(name="fear")))
    none = np.zeros(0, np.int32)
    neurons = {name: Components(none, none, np.zeros(0, np.float32)) for name in ("anger", "fear")}
    heads = {name: Components(none, none, np.zeros((0, 4), np.float32)) for name in ("anger", "fear")}
    return Circuit(spec, neurons, heads, {}, random_directions(spec))


@pytest.mark.parametrize(
    ("layers", "steered"),
    [(28, range(11, 21)), (30, range(12, 22)), (3, range(1, 3)), (1, range(1)), (56, range(22, 41))],
)
def test_the_band_has_the_papers_relative_depth(layers: int, steered: range) -> None:
    assert steered_layers(layers) == steered


@pytest.mark.parametrize("hidden", [64, 576])
@pytest.mark.parametrize("fused", [False, True])
def test_the_push_is_the_papers_share_of_the_stream_at_any_width(hidden: int, fused: bool) -> None:
    made = circuit(hidden)
    vectors = torch.from_numpy(steering_vectors(made, 1))
    hidden_part, residual = torch.randn(2, 3, hidden, generator=torch.Generator().manual_seed(0)).unbind(0)
    coefficients = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, -2.0], [9.0, 9.0]])
    out = add_steering(hidden_part, residual, coefficients, vectors, fused)
    push, stream = out - hidden_part, hidden_part + residual
    share = push.norm(dim=1) / stream.norm(dim=1)
    assert share.tolist() == pytest.approx([0.1443, 0, 0.2887], abs=1e-4)
    assert torch.equal(out[1], hidden_part[1])
    direction = torch.from_numpy(made.directions["fear"][1])
    assert float(push[2] @ direction / push[2].norm()) == pytest.approx(-1, abs=1e-5)
    # The stream whole, as some layers return it.
    whole = add_steering(stream, None, coefficients, vectors, fused)
    torch.testing.assert_close(whole - stream, push, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.down_proj", "model.layers.3"),
        ("model.layers.3.self_attn.o_proj.base_layer", "model.layers.3"),
        ("transformer.h.7.attn.c_proj", "transformer.h.7"),
        ("model.decoder.layers.0.fc2", "model.decoder.layers.0"),
        ("model.layers.3.input_layernorm", None),
        ("lm_head", None),
    ],
)
def test_a_sites_layer_is_known_by_its_name(name: str, layer: str | None) -> None:
    assert layer_of(name) == layer
