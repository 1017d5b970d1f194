"""The circuits that the paper's authors published, as ours: `emovllm import-published`.

Read from a checkout of their repository (their formats, none of their code):
`outputs/<run>/06_emotion_circuit_integration/global_circuit/{emotion}.json` names the neurons and heads, and
`outputs/<run>/05_emotion_diff_vector_computation/{mlp,attention}_emotion_diff/` holds the difference vectors, as
`emo_diff/{emotion}/L{n}.npy` (or `layer{n}.npy`) or together in `emo_diff_all.npz`. What is missing is an error: the
authors' own loader takes zeros instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import emovllm
from emovllm.circuit import Circuit, Components
from emovllm.circuit_files import save_circuit
from emovllm.errors import PublishedError
from emovllm.files import read_text
from emovllm.spec import CircuitSpec, EmotionSpec, ModelSpec
from emovllm_offline.model.weights import Projections

LLAMA_32_3B = ModelSpec(
    id="meta-llama/Llama-3.2-3B-Instruct",
    architecture="LlamaForCausalLM",
    num_hidden_layers=28,
    hidden_size=3072,
    intermediate_size=8192,
    num_attention_heads=24,
    head_dim=128,
    vocab_size=128256,
)
# The strengths that the authors used (method section 8).
_RECOMMENDED = {"anger": 0.8}
_CIRCUITS = "06_emotion_circuit_integration/global_circuit"
_DIFFERENCES = {
    "mlp": "05_emotion_diff_vector_computation/mlp_emotion_diff",
    "attention": "05_emotion_diff_vector_computation/attention_emotion_diff",
}
_DIRECTIONS = "02_emotion_directions/emo_directions_{kind}.pt"


def import_published(
    checkout: str | Path, out: str | Path, model: str | Path | None = None, spec: ModelSpec = LLAMA_32_3B
) -> Circuit:
    """Turns the authors' artefacts into a circuit folder.

    Args:
        checkout: their repository, or the folder of one run (that with `06_emotion_circuit_integration`).
        model: where the weights are, for the fingerprint: a folder or Hugging Face id; `spec.id` by default.
    Raises: PublishedError, WeightsError, CircuitError, OSError.
    """
    run = find_run(checkout)
    circuits = sorted((run / _CIRCUITS).glob("*.json"))
    if not circuits:
        raise PublishedError(f"{run / _CIRCUITS}: no {{emotion}}.json there")
    neurons, heads = {}, {}
    for path in circuits:
        name = path.stem
        chosen = _read_circuit(path, spec)
        neurons[name] = _components(
            {layer: units[0] for layer, units in chosen.items()}, Differences(run, "mlp", name, spec.intermediate_size)
        )
        width = spec.num_attention_heads * spec.head_dim
        heads[name] = _components(
            {layer: units[1] for layer, units in chosen.items()},
            Differences(run, "attention", name, width, (spec.num_attention_heads, spec.head_dim)),
        )
    described = CircuitSpec(
        model=spec,
        emotions=tuple(
            EmotionSpec(name=path.stem, recommended=_RECOMMENDED.get(path.stem, 1.0), maximal=2.0) for path in circuits
        ),
        provenance={
            "source": "the published artefacts of arXiv 2510.11328",
            "run": run.name,
            "circuits": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in circuits},
            "versions": {"emovllm": emovllm.__version__},
        },
    )
    circuit = Circuit.fingerprinted(described, neurons, heads, Projections(model or spec.id))
    save_circuit(circuit, out)
    return circuit


def find_run(checkout: str | Path) -> Path:
    """The run's folder in a checkout. Raises: PublishedError where there is none, or more than one."""
    root = Path(checkout)
    if (root / _CIRCUITS).is_dir():
        return root
    runs = sorted(path.parents[1] for path in root.glob(f"outputs/*/{_CIRCUITS}"))
    if len(runs) != 1:
        found = ", ".join(run.name for run in runs) or "none"
        raise PublishedError(
            f"{root}: expected one run with {_CIRCUITS} under outputs/, found {found}; name its folder"
        )
    return runs[0]


def load_directions(checkout: str | Path, kind: str) -> dict[str, np.ndarray]:
    """The published emotion directions, `kind` being `attention` or `mlp`: float32 [layers, hidden] by emotion.

    Unlike ours, the last layer's mlp direction is of the state after the final norm.
    Raises: PublishedError.
    """
    path = find_run(checkout) / _DIRECTIONS.format(kind=kind)
    if not path.is_file():
        raise PublishedError(f"{path}: missing")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        directions = {name: tensor.float().numpy() for name, tensor in content["dirs"].items()}
    except Exception as error:
        raise PublishedError(f"{path}: not a file of directions ({error})") from None
    for name, direction in directions.items():
        if direction.ndim != 2 or not np.isfinite(direction).all():
            raise PublishedError(f"{path}: {name} is {direction.shape}, or not finite")
    return directions


class Differences:
    """The difference vectors of one emotion and kind, one file a layer or all in an archive."""

    def __init__(self, run: Path, kind: str, emotion: str, width: int, shape: tuple[int, ...] | None = None) -> None:
        self.folder = run / _DIFFERENCES[kind] / "emo_diff" / emotion
        self.archive = run / _DIFFERENCES[kind] / "emo_diff_all.npz"
        self.emotion, self.width, self.shape = emotion, width, shape or (width,)

    def __getitem__(self, layer: int) -> np.ndarray:
        """float32 [units, ...]. Raises: PublishedError."""
        source, values = self._read(layer)
        if values.size != self.width:
            raise PublishedError(f"{source}: {values.shape}, expected {self.width} values")
        if not np.isfinite(values).all():
            raise PublishedError(f"{source}: has a value that is not finite")
        return values.reshape(self.shape).astype(np.float32)

    def _read(self, layer: int) -> tuple[str, np.ndarray]:
        for path in (self.folder / f"L{layer}.npy", self.folder / f"layer{layer}.npy"):
            if path.is_file():
                try:
                    return str(path), np.load(path, allow_pickle=False)
                except (ValueError, EOFError) as error:
                    raise PublishedError(f"{path}: {error}") from None
        key = f"{self.emotion}/diff/L{layer}"
        if self.archive.is_file():
            try:
                with np.load(self.archive, allow_pickle=False) as archive:
                    if key in archive:
                        return f"{self.archive}[{key}]", archive[key]
            except (ValueError, EOFError, OSError) as error:
                raise PublishedError(f"{self.archive}: {error}") from None
        raise PublishedError(f"{self.folder / f'L{layer}.npy'}: missing (nor is {key} in {self.archive.name})")


def _components(chosen: Mapping[int, Sequence[int]], differences: Differences) -> Components:
    layers: list[int] = []
    deltas: list[np.ndarray] = []
    for layer in sorted(chosen):
        if chosen[layer]:
            layers += [layer] * len(chosen[layer])
            deltas.append(differences[layer][list(chosen[layer])])
    index = [unit for layer in sorted(chosen) for unit in chosen[layer]]
    delta = np.concatenate(deltas) if deltas else np.zeros((0, *differences.shape[1:]), np.float32)
    return Components(np.array(layers, np.int32), np.array(index, np.int32), delta)


def _read_circuit(path: Path, spec: ModelSpec) -> dict[int, tuple[list[int], list[int]]]:
    """layer -> (neurons, heads)."""
    try:
        layers: list[dict[str, Any]] = json.loads(read_text(path, PublishedError))["layers"]
        read = {
            int(entry["layer"]): (
                [int(unit) for unit in entry["mlp"]["neurons"]],
                [int(unit) for unit in entry["attention"]["heads"]],
            )
            for entry in layers
        }
    except (ValueError, KeyError, TypeError) as error:
        raise PublishedError(f"{path}: not a circuit of the published form ({error!r})") from None
    if len(read) != len(layers):
        raise PublishedError(f"{path}: a layer is listed twice")
    for layer, (neurons, heads) in read.items():
        for kind, units, count in (
            ("layer", [layer], spec.num_hidden_layers),
            ("neuron", neurons, spec.intermediate_size),
            ("head", heads, spec.num_attention_heads),
        ):
            if bad := [unit for unit in units if not 0 <= unit < count]:
                raise PublishedError(f"{path}: layer {layer}: {kind} {bad[0]} is outside 0..{count - 1}")
    return read
