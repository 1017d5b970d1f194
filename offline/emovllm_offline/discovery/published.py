"""The circuits that the paper's authors published, as ours: `emovllm import-published`.

Read from a checkout of their repository (their formats, none of their code):
`outputs/<run>/06_emotion_circuit_integration/global_circuit/{emotion}.json` names the neurons and heads, and
`outputs/<run>/05_emotion_diff_vector_computation/{mlp,attention}_emotion_diff/` holds the difference vectors, as
`emo_diff/{emotion}/L{n}.npy` (or `layer{n}.npy`) or together in `emo_diff_all.npz`. What is missing is an error: the
authors' own loader takes zeros instead. `outputs/<run>/02_emotion_directions/emo_directions_mlp.pt`, where it is there,
gives the steering baseline its directions.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
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
# Their directions are NumPy's arrays, pickled under the name that its module had before NumPy 2.
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_ARRAYS: list[Any] = [
    *((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *(np.ndarray, np.dtype, type(np.dtype(np.float16)), type(np.dtype(np.float32)), type(np.dtype(np.float64))),
]


def import_published(
    checkout: str | Path, out: str | Path, model: str | Path | None = None, spec: ModelSpec = LLAMA_32_3B
) -> Circuit:
    """Turns the authors' artefacts into a circuit folder.

    Args:
        checkout: their repository, or the folder of one run (that with `06_emotion_circuit_integration`).
        model: where the weights are, for the fingerprint: a folder or Hugging Face id; `spec.id` by default.
    Returns: the circuit; without `directions`, and so without the steering baseline, where theirs are not there.
    Raises: PublishedError, WeightsError, CircuitError, OSError.
    """
    run = find_run(checkout)
    circuits = sorted((run / _CIRCUITS).glob("*.json"))
    if not circuits:
        raise PublishedError(f"{run / _CIRCUITS}: no {{emotion}}.json there")
    neurons, heads = {}, {}
    digests: dict[str, dict[Path, str]] = {kind: {} for kind in _DIFFERENCES}
    for path in circuits:
        name = path.stem
        chosen = _read_circuit(path, spec)
        shape = (spec.num_attention_heads, spec.head_dim)
        of_neurons = Differences(run, "mlp", name, (spec.intermediate_size,), digests["mlp"])
        of_heads = Differences(run, "attention", name, shape, digests["attention"])
        neurons[name] = _components({layer: units[0] for layer, units in chosen.items()}, of_neurons)
        heads[name] = _components({layer: units[1] for layer, units in chosen.items()}, of_heads)
    directions, directions_digest = _directions_of(run, [path.stem for path in circuits], spec)
    described = CircuitSpec(
        model=spec,
        emotions=tuple(
            EmotionSpec(name=path.stem, recommended=_RECOMMENDED.get(path.stem, 1.0), maximal=2.0) for path in circuits
        ),
        provenance={
            "source": "the published artefacts of arXiv 2510.11328",
            "run": run.name,
            "circuits": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in circuits},
            "differences": {kind: {"files": len(read), "sha256": _digest(run, read)} for kind, read in digests.items()},
            "directions": directions_digest,
            "versions": {"emovllm": emovllm.__version__},
        },
    )
    circuit = Circuit.fingerprinted(described, neurons, heads, Projections(model or spec.id), directions)
    save_circuit(circuit, out)
    return circuit


def find_run(checkout: str | Path) -> Path:
    """The run's folder in a checkout. Raises: PublishedError where there is none, or more than one."""
    root = Path(checkout)
    if (root / _CIRCUITS).is_dir():
        return root
    runs = sorted(path.parents[1] for path in root.glob(f"outputs/*/{_CIRCUITS}"))
    if len(runs) == 1:
        return runs[0]
    if runs:
        raise PublishedError(f"{root}: several runs have {_CIRCUITS}: {', '.join(run.name for run in runs)}; name one")
    begun = sorted(path.parent for folder in (root, *root.glob("outputs/*")) for path in folder.glob("0[1-6]_emotion*"))
    if begun:
        raise PublishedError(
            f"{begun[0]}: {_CIRCUITS} is missing: this commit of their repository does not say which neurons and heads "
            "are in the circuits; check one out that does, or find them yourself with `emovllm discover`"
        )
    raise PublishedError(f"{root}: expected one run with {_CIRCUITS} under outputs/, found none; name its folder")


def load_directions(checkout: str | Path, kind: str) -> dict[str, np.ndarray]:
    """The published emotion directions, `kind` being `attention` or `mlp`: float32 [layers, hidden] by emotion.

    Unlike ours, the last layer's mlp direction is of the state after the final norm.
    Raises: PublishedError.
    """
    path = find_run(checkout) / _DIRECTIONS.format(kind=kind)
    if not path.is_file():
        raise PublishedError(f"{path}: missing")
    return _directions_in(path, path.read_bytes())


def _directions_in(path: Path, content: bytes) -> dict[str, np.ndarray]:
    """As `load_directions`; path: of the content."""
    try:
        # Nothing but tensors and arrays of floats is made of what the file says.
        with torch.serialization.safe_globals(_ARRAYS):
            read = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        directions = {name: torch.as_tensor(values).float().numpy() for name, values in read["dirs"].items()}
    except Exception as error:
        raise PublishedError(f"{path}: not a file of directions ({error})") from None
    for name, direction in directions.items():
        if direction.ndim != 2 or not np.isfinite(direction).all():
            raise PublishedError(f"{path}: {name} is {direction.shape}, or not finite")
    return directions


def _directions_of(run: Path, names: Sequence[str], spec: ModelSpec) -> tuple[dict[str, np.ndarray], str | None]:
    """What the steering baseline adds, and the file's digest; nothing where they did not publish it. Zero in the last
    layer, where theirs is of the state after the final norm."""
    path = run / _DIRECTIONS.format(kind="mlp")
    if not path.is_file():
        return {}, None
    content = path.read_bytes()
    found = _directions_in(path, content)
    if missing := [name for name in names if name not in found]:
        raise PublishedError(f"{path}: has no direction of {', '.join(missing)}")
    shape = (spec.num_hidden_layers, spec.hidden_size)
    if wrong := [name for name in names if found[name].shape != shape]:
        raise PublishedError(f"{path}: {wrong[0]} is {found[wrong[0]].shape}, expected {shape}")
    inner = np.arange(spec.num_hidden_layers)[:, None] < spec.num_hidden_layers - 1
    directions = {name: np.where(inner, found[name], 0).astype(np.float32) for name in names}
    return directions, _digest(run, {path: hashlib.sha256(content).hexdigest()})


def _digest(run: Path, digests: Mapping[Path, str]) -> str:
    """sha256 over files' names and contents; digests: sha256 of each file's content."""
    lines = (f"{path.relative_to(run).as_posix()} {digest}\n" for path, digest in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Differences:
    """The difference vectors of one emotion and kind, of `shape`, one file a layer or all in an archive; the sha256 of
    each file that is read is added to `digests`."""

    def __init__(self, run: Path, kind: str, emotion: str, shape: tuple[int, ...], digests: dict[Path, str]) -> None:
        self.folder = run / _DIFFERENCES[kind] / "emo_diff" / emotion
        self.archive = run / _DIFFERENCES[kind] / "emo_diff_all.npz"
        self.emotion, self.shape, self.width = emotion, shape, math.prod(shape)
        self.digests = digests

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
                content = path.read_bytes()
                self.digests[path] = hashlib.sha256(content).hexdigest()
                try:
                    return str(path), np.load(io.BytesIO(content), allow_pickle=False)
                except (ValueError, EOFError) as error:
                    raise PublishedError(f"{path}: {error}") from None
        key = f"{self.emotion}/diff/L{layer}"
        if self.archive.is_file():
            try:
                with np.load(self.archive, allow_pickle=False) as archive:
                    if key in archive:
                        # Of all layers and emotions: it is not read at once, and not digested for each.
                        if self.archive not in self.digests:
                            self.digests[self.archive] = hashlib.sha256(self.archive.read_bytes()).hexdigest()
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
