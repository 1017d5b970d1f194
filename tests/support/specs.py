"""Specifications without weights, for tests of what requests may ask for."""

from __future__ import annotations

from emovllm.spec import ModelSpec

ANY_MODEL = ModelSpec(
    id="m",
    architecture="A",
    num_hidden_layers=1,
    hidden_size=1,
    intermediate_size=1,
    num_attention_heads=1,
    head_dim=1,
    vocab_size=1,
)
