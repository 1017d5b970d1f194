"""Probes of random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from emovllm.probe import Probe, ProbeSpec
from emovllm.spec import ModelSpec


def random_probe(
    labels: Sequence[str],
    layers: Sequence[int],
    model: ModelSpec,
    fingerprint: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    best: int | None = None,
) -> Probe:
    """Of some layers of a model, the last of which is the best unless another is named."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    hidden = model.hidden_size
    return Probe(
        ProbeSpec(model=model, labels=tuple(labels), layers=tuple(layers), layer=layers[-1] if best is None else best),
        mean=normal(len(layers), hidden),
        # About as wide as the states of random models, so that logits are of the order of 1.
        scale=np.float32(8) * np.exp(normal(len(layers), hidden) / 2),
        weight=normal(len(layers), len(labels), hidden) / np.float32(np.sqrt(hidden)),
        bias=normal(len(layers), len(labels)),
        fingerprint={"mlp.0": normal(1, 16)} if fingerprint is None else dict(fingerprint),
    )
