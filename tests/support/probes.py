"""Probes of random weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emovllm.probe import Probe, ProbeSpec
from emovllm.spec import ModelSpec


def random_probe(
    labels: Sequence[str], layers: Sequence[int], hidden: int, of: int, seed: int = 0, model: ModelSpec | None = None
) -> Probe:
    """Of a model with `of` layers; the last is the best."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    spec = ModelSpec(
        id="tiny",
        architecture="Tiny",
        num_hidden_layers=of,
        hidden_size=hidden,
        intermediate_size=1,
        num_attention_heads=1,
        head_dim=1,
        vocab_size=1,
    )
    return Probe(
        ProbeSpec(model=model or spec, labels=tuple(labels), layers=tuple(layers), layer=layers[-1]),
        mean=normal(len(layers), hidden),
        scale=np.exp(normal(len(layers), hidden)),
        weight=normal(len(layers), len(labels), hidden),
        bias=normal(len(layers), len(labels)),
        fingerprint={"mlp.0": normal(1, 16)},
    )
