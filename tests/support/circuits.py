"""Circuits for tests: random units of real shapes, with the fingerprint of the model they are for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from transformers import AutoConfig

from emovllm.architectures import parse_site
from emovllm.circuit import Circuit, Components
from emovllm.circuit_files import save_circuit
from emovllm.spec import CircuitSpec, EmotionSpec, ModelSpec

SIX = ("anger", "sadness", "happiness", "fear", "surprise", "disgust")


def random_circuit(
    model: str | Path,
    out: str | Path,
    *,
    names: tuple[str, ...] = SIX,
    neurons: int = 8,
    heads: int = 2,
    scale: float = 0.3,
    seed: int = 0,
    directions: bool = False,
) -> Path:
    """Writes a circuit of random units in all layers of a `model` folder, which changes replies at once."""
    config = AutoConfig.from_pretrained(model)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    random = np.random.default_rng(seed)
    projections = {}
    for file in sorted(Path(model).glob("*.safetensors")):
        for name, weight in load_file(file).items():
            site = parse_site(name.removesuffix(".weight"))
            if site is not None and name.endswith(".weight"):
                # GPT-2's Conv1D holds [in, out].
                projections[site] = (weight.T if config.model_type == "gpt2" else weight).float().numpy()
    # A mixture of experts has no such projection.
    intermediate = projections["mlp", 0].shape[1] if ("mlp", 0) in projections else config.intermediate_size

    def units(count: int, available: int, shape: tuple[int, ...], factor: float) -> Components:
        layer = np.repeat(np.arange(layers, dtype=np.int32), count)
        index = np.array([random.choice(available, count, replace=False) for _ in range(layers)]).reshape(-1)
        delta = random.standard_normal((len(layer), *shape)) * factor
        return Components(layer, index.astype(np.int32), delta.astype(np.float32))

    spec = CircuitSpec(
        model=ModelSpec(
            id=Path(model).name,
            architecture=config.architectures[0],
            num_hidden_layers=layers,
            hidden_size=config.hidden_size,
            intermediate_size=intermediate,
            num_attention_heads=config.num_attention_heads,
            head_dim=head_dim,
            vocab_size=config.vocab_size,
        ),
        emotions=tuple(EmotionSpec(name=name, recommended=1.0, maximal=3.0) for name in names),
    )
    of_neurons = {name: units(neurons, intermediate, (), scale) for name in names}
    of_heads = {name: units(heads, config.num_attention_heads, (head_dim,), scale / 4) for name in names}

    def weight_of(kind: str, layer: int) -> np.ndarray:
        width = intermediate if kind == "mlp" else config.num_attention_heads * head_dim
        return projections.get((kind, layer), np.zeros((config.hidden_size, width), np.float32))

    of_emotions = random_directions(spec) if directions else None
    save_circuit(Circuit.fingerprinted(spec, of_neurons, of_heads, weight_of, of_emotions), out)
    return Path(out)


def random_directions(spec: CircuitSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """Unit vectors [layers, hidden] of each emotion."""
    random = np.random.default_rng(seed)
    shape = (spec.model.num_hidden_layers, spec.model.hidden_size)
    drawn = {emotion.name: random.standard_normal(shape) for emotion in spec.emotions}
    return {name: (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for name, v in drawn.items()}


def components(layer: list[int], index: list[int], shape: tuple[int, ...] = (), seed: int = 0) -> Components:
    """Units at these layers and indices, each with a random delta of this shape."""
    delta = np.random.default_rng(seed).standard_normal((len(layer), *shape)).astype(np.float32)
    return Components(np.array(layer, np.int32), np.array(index, np.int32), delta)
