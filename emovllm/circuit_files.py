"""A circuit's folder, `circuit.json` and `circuit.safetensors`: saved, found, and loaded once it is checked.

Nothing in it is executable: JSON and safetensors only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from emovllm.circuit import Circuit, Components
from emovllm.errors import CircuitError
from emovllm.experts import RoutedNeurons
from emovllm.files import decode, parse_json, read_bytes, write_atomically
from emovllm.probe import NAME as PROBE_NAME
from emovllm.spec import FORMAT_VERSIONS, CircuitSpec

JSON_NAME = "circuit.json"
TENSORS_NAME = "circuit.safetensors"
MAX_JSON_BYTES = 16 * 2**20
# A thousand neurons and every head of 80 layers, for 256 emotions, take two thirds of it.
MAX_TENSORS_BYTES = 2**30
# OWNER/NAME, and a branch, tag or commit behind it: OWNER/NAME@REVISION.
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(\w[\w./-]*))?")


def save_circuit(circuit: Circuit, folder: str | os.PathLike[str]) -> None:
    """Writes the folder. The JSON goes last, so that a half-written circuit does not load."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON_NAME).unlink(missing_ok=True)
    data = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in sorted(circuit.tensors().items())})
    write_atomically(folder / TENSORS_NAME, data)
    replace_spec(folder, circuit.spec.model_copy(update={"tensors_sha256": hashlib.sha256(data).hexdigest()}))


def replace_spec(folder: str | os.PathLike[str], spec: CircuitSpec) -> None:
    """Replaces the JSON of a saved circuit, whose tensors stay: readers see the old circuit or the whole new one."""
    write_atomically(Path(folder) / JSON_NAME, (spec.model_dump_json(indent=1, exclude_none=True) + "\n").encode())


def load_circuit(source: str | os.PathLike[str]) -> Circuit:
    """Loads a circuit from a folder, or from a Hugging Face repository: OWNER/NAME, or OWNER/NAME@REVISION.

    Raises: CircuitError, naming the file and what is wrong with it.
    """
    folder = resolve_circuit(source)
    spec = _read_spec(folder / JSON_NAME)
    tensors = _read_tensors(folder / TENSORS_NAME, spec.tensors_sha256)
    try:
        return _assemble(spec, tensors)
    except CircuitError as error:
        raise CircuitError(f"{folder}: {error}") from None


def resolve_circuit(source: str | os.PathLike[str]) -> Path:
    """The local folder of a circuit; downloads it when `source` can only be a Hugging Face repository.

    Raises: CircuitError.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if (repository := _repository(str(source))) is None:
        raise CircuitError(f"{source}: no such circuit folder{beside(folder)}")
    from huggingface_hub import snapshot_download

    name, revision = repository
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[JSON_NAME, TENSORS_NAME, PROBE_NAME]))
    except Exception as error:
        raise CircuitError(
            f"{source}: neither a folder ({folder.absolute()} does not exist) nor a Hugging Face repository that could "
            f"be fetched ({error})"
        ) from error


def is_repository_id(text: str) -> bool:
    """Whether it is of the form OWNER/NAME, as Hugging Face's repositories are called."""
    named = _REPOSITORY.fullmatch(text)
    return named is not None and named[2] is None


def beside(folder: Path) -> str:
    """What a missing folder may have been meant to be."""
    try:
        names = sorted(path.parent.name for path in folder.parent.glob(f"*/{JSON_NAME}"))
    except (OSError, ValueError):
        return ""
    return f"; {folder.parent} has {', '.join(names[:8])}" if names else ""


def _repository(source: str) -> tuple[str, str | None] | None:
    """The repository and revision that a name which is no folder may be; None for a path of which a part is there."""
    named = _REPOSITORY.fullmatch(source)
    owner, _, _ = source.partition("/")
    return None if named is None or Path(owner).exists() else (named[1], named[2])


def _assemble(spec: CircuitSpec, tensors: dict[str, np.ndarray]) -> Circuit:
    rest = dict(tensors)
    emotions = [emotion.name for emotion in spec.emotions]

    def take(what: str, parts: Iterable[str]) -> Iterator[np.ndarray]:
        names = [f"{what}.{part}" for part in parts]
        if missing := [name for name in names if name not in rest]:
            raise CircuitError(f"{TENSORS_NAME} has no {', '.join(missing)}")
        return (rest.pop(name) for name in names)

    neurons, heads = (
        {name: Components(*take(f"{name}.{kind}", ("layer", "index", "delta"))) for name in emotions}
        for kind in ("neurons", "heads")
    )
    with_experts = emotions if spec.model.has_experts else []
    experts = {name: RoutedNeurons(*take(f"{name}.experts", RoutedNeurons.PARTS)) for name in with_experts}
    fingerprint, directions = (
        {name.removeprefix(prefix): rest.pop(name) for name in list(rest) if name.startswith(prefix)}
        for prefix in ("fingerprint.", "directions.")
    )
    if rest:
        raise CircuitError(f"{TENSORS_NAME} has unknown tensors: {', '.join(sorted(rest)[:4])}")
    return Circuit(spec, neurons, heads, fingerprint, directions, experts)


def _read_spec(path: Path) -> CircuitSpec:
    text = decode(path, read_bytes(path, CircuitError, MAX_JSON_BYTES), CircuitError)
    try:
        version = json.loads(text).get("format_version")
    except (ValueError, AttributeError, RecursionError):
        raise CircuitError(f"{path}: not a JSON object") from None
    if version not in FORMAT_VERSIONS:
        raise CircuitError(
            f"{path}: format_version {version!r}; this emovllm reads {', '.join(map(str, FORMAT_VERSIONS))}"
        )
    return parse_json(str(path), text, CircuitSpec, CircuitError)


def _read_tensors(path: Path, sha256: str) -> dict[str, np.ndarray]:
    data = read_bytes(path, CircuitError, MAX_TENSORS_BYTES)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CircuitError(
            f"{path}: its sha256 is not the one in {JSON_NAME}: truncated, altered, or of another circuit"
        )
    try:
        return safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise CircuitError(f"{path}: {error}") from None
