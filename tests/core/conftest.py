"""A small circuit of two emotions."""

from __future__ import annotations

import numpy as np
import pytest

from emovllm.circuit import Circuit
from emovllm.fingerprint import FINGERPRINT_SIZE
from emovllm.spec import CircuitSpec, EmotionSpec, ModelSpec
from support.circuits import components

MODEL = ModelSpec(
    id="tiny",
    architecture="LlamaForCausalLM",
    num_hidden_layers=3,
    hidden_size=8,
    intermediate_size=10,
    num_attention_heads=2,
    head_dim=4,
    vocab_size=20,
)


@pytest.fixture
def circuit() -> Circuit:
    spec = CircuitSpec(
        model=MODEL,
        emotions=(EmotionSpec(name="anger", recommended=0.8, maximal=1.6), EmotionSpec(name="calm")),
        provenance={"seed": 1, "styles": ["paper"]},
    )
    neurons = {"anger": components([0, 0, 2], [9, 1, 3]), "calm": components([], [])}
    heads = {"anger": components([2], [1], (4,)), "calm": components([2], [0], (4,), seed=1)}
    random = np.random.default_rng(2)
    fingerprint = {
        key: random.standard_normal((2, FINGERPRINT_SIZE)).astype(np.float32) for key in ("mlp.0", "mlp.2", "attn.2")
    }
    return Circuit(spec, neurons, heads, fingerprint)
