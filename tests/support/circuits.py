"""Circuits for tests: random units of real shapes, with the fingerprint of the model they are for."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from transformers import AutoConfig

from emovllm.architectures import candidates, parse_site
from emovllm.circuit import Circuit, Components
from emovllm.circuit_files import save_circuit
from emovllm.experts import RoutedNeurons
from emovllm.probe import fingerprint_of, save_probe
from emovllm.spec import CircuitSpec, EmotionSpec, ExpertsSpec, LayerSpec, ModelSpec
from support.probes import random_probe

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
    experts: float = 0,
    mixers: bool = True,
    probe: bool = False,
) -> Path:
    """Writes a circuit of random units in all layers of a `model` folder, which changes replies at once.

    experts: the scale of vectors at the output of blocks of experts; 0 for none.
    mixers: whether it has heads where another mixer stands in the place of attention.
    probe: whether a probe of random weights lies beside it.
    """
    whole = AutoConfig.from_pretrained(model)
    config = whole.get_text_config()
    families = candidates(config.model_type)
    layers = config.num_hidden_layers
    random = np.random.default_rng(seed)
    projections, heads_of = {}, {}
    routers = {}
    for file in sorted(Path(model).glob("*.safetensors")):
        for name, weight in load_file(file).items():
            site = parse_site(name.removesuffix(".weight"), families)
            if site is not None and name.endswith(".weight"):
                # GPT-2's Conv1D holds [in, out].
                projections[site] = (weight.T if config.model_type == "gpt2" else weight).float().numpy()
                setting = families[0].heads_setting(".".join(name.split(".")[-3:-1]))
                if mixers or setting == "num_attention_heads":
                    heads_of[site] = getattr(config, setting)
            if experts and (router := re.search(r"layers\.(\d+)\.\w+\.(?:gate|router)\.weight$", name)):
                routers[int(router[1])] = weight.float().numpy()

    def size(layer: int) -> LayerSpec:
        mlp, attn = ("mlp", layer), ("attn", layer)
        heads = heads_of.get(attn, 0)
        return LayerSpec(
            neurons=projections[mlp].shape[1] if mlp in projections else 0,
            heads=heads,
            head_dim=projections[attn].shape[1] // heads if heads else 0,
            experts=ExpertsSpec(count=len(routers[layer]), neurons=8, block="mlp") if layer in routers else None,
        )

    sizes = [size(layer) for layer in range(layers)]
    intermediate = max(size.neurons for size in sizes) or config.intermediate_size
    heads_all, head_dim = max(size.heads for size in sizes), max(size.head_dim for size in sizes)
    # As many neurons as it has are asked of a model without any, to be refused.
    if not any(size.neurons for size in sizes) and neurons:
        sizes = [size.model_copy(update={"neurons": intermediate}) for size in sizes]
    full = (intermediate, heads_all, head_dim, None)
    uneven = any((size.neurons, size.heads, size.head_dim, size.experts) != full for size in sizes)

    def units(count: int, available: list[int], width: int | None, factor: float) -> Components:
        here = [layer for layer in range(layers) if available[layer]]
        layer = np.repeat(np.array(here, dtype=np.int32), count)
        index = np.array([random.choice(available[one], count, replace=False) for one in here]).reshape(-1)
        delta = random.standard_normal((len(layer), *([] if width is None else [width]))) * factor
        if width is not None:
            delta[np.arange(width) >= np.array([sizes[one].head_dim for one in layer])[:, None]] = 0
        return Components(layer, index.astype(np.int32), delta.astype(np.float32))

    spec = CircuitSpec(
        model=ModelSpec(
            id=Path(model).name,
            architecture=whole.architectures[0],
            num_hidden_layers=layers,
            hidden_size=config.hidden_size,
            intermediate_size=intermediate,
            num_attention_heads=heads_all,
            head_dim=head_dim,
            vocab_size=config.vocab_size,
            layers=tuple(sizes) if uneven else None,
        ),
        emotions=tuple(EmotionSpec(name=name, recommended=1.0, maximal=3.0) for name in names),
    )
    of_neurons = {name: units(neurons, [size.neurons for size in sizes], None, scale) for name in names}
    of_heads = {name: units(heads, [size.heads for size in sizes], head_dim, scale / 4) for name in names}

    def weight_of(kind: str, layer: int) -> np.ndarray:
        if kind == "experts":
            return routers[layer]
        width = intermediate if kind == "mlp" else heads_all * head_dim
        return projections.get((kind, layer), np.zeros((config.hidden_size, width), np.float32))

    of_emotions = random_directions(spec) if directions else None
    routed = {name: random_routed(spec.model, random, experts) for name in names if routers}
    save_circuit(Circuit.fingerprinted(spec, of_neurons, of_heads, weight_of, of_emotions, routed), out)
    if probe:
        sites = [site for site in sorted(projections) if spec.model.layers is None or site in heads_of or "mlp" in site]
        fingerprint = fingerprint_of(sites, weight_of)
        save_probe(random_probe(("neutral", *names), range(layers), spec.model, fingerprint, best=layers // 2), out)
    return Path(out)


def random_routed(model: ModelSpec, random: np.random.Generator, scale: float = 1.0) -> RoutedNeurons:
    """A neuron of an expert in each layer that has experts, and random vectors there."""
    layer = np.array([i for i in range(model.num_hidden_layers) if model.experts(i)], np.int32)
    vectors = np.zeros((model.num_hidden_layers, model.hidden_size), np.float32)
    vectors[layer] = random.standard_normal((len(layer), model.hidden_size)) * scale
    delta, routing = random.standard_normal((2, len(layer))).astype(np.float32)
    return RoutedNeurons(layer, np.ones_like(layer), np.arange(len(layer), dtype=np.int32), delta, routing, vectors)


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
