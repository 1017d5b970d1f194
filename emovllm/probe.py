"""Probes: linear readings of emotion from the hidden states of a model (arXiv 2510.04064), and the file they are in.

`probe.safetensors` holds one multinomial probe for each layer that was trained, and says in its metadata of which model
they are. It lies in a circuit's folder, or in one of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import Field, model_validator

from emovllm.errors import ProbeError
from emovllm.files import parse_json, read_bytes, write_atomically
from emovllm.fingerprint import fingerprint_entries, site_key
from emovllm.spec import Frozen, ModelSpec

NAME = "probe.safetensors"
# 256 labels of a hundred layers, 16,384 wide, take as much.
MAX_BYTES = 2**31
# Inputs of a site that `mark` sets.
_MARKED = 16
# Of what is not a probe's weights in the file's metadata.
_SPEC = "probe"

Label = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
# Which states of a text a probe was trained on: the last token's, or their mean over its tokens.
Pooling = Literal["last", "mean"]


class ProbeSpec(Frozen):
    """What a probe says of itself.

    layers: those that have a probe, ascending; the states are the residual stream's after the layer.
    layer: the one that is read where none is named: the best on the data held out.
    provenance: data, settings, and for each layer what was measured.
    """

    format: Literal["emovllm-probe"] = "emovllm-probe"
    format_version: Literal[1] = 1
    model: ModelSpec
    labels: Annotated[tuple[Label, ...], Field(min_length=2, max_length=256)]
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    layer: int
    pooling: Pooling = "last"
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> ProbeSpec:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels are named twice: {', '.join(self.labels)}")
        if list(self.layers) != sorted(set(self.layers)) or self.layers[-1] >= self.model.num_hidden_layers:
            raise ValueError(f"layers are not ascending ones of {self.model.num_hidden_layers}: {self.layers}")
        if self.layer not in self.layers:
            raise ValueError(f"layer {self.layer} has no probe")
        return self


@dataclass(frozen=True)
class Probe:
    """Probes of a model's layers, in the order of `spec.layers`; all float32.

    mean, scale: [layers, hidden], by which states are standardised. weight: [layers, labels, hidden].
    bias: [layers, labels]. fingerprint: by site, what the model writes for `mark`, by which it is recognised,
        [1, FINGERPRINT_SIZE].
    """

    spec: ProbeSpec
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    fingerprint: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        """Raises: ProbeError."""
        layers, labels, hidden = len(self.spec.layers), len(self.spec.labels), self.spec.model.hidden_size
        shapes = {"mean": (layers, hidden), "scale": (layers, hidden), "weight": (layers, labels, hidden)}
        for name, shape in (shapes | {"bias": (layers, labels)}).items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float32:
                raise ProbeError(f"{name} is {array.dtype} {list(array.shape)}, not float32 {list(shape)}")
            if not np.isfinite(array).all():
                raise ProbeError(f"{name} is not finite")
        if not (self.scale > 0).all():
            raise ProbeError("scale is not above 0")
        if not self.fingerprint:
            raise ProbeError("it has no fingerprint of its model")

    def at(self, layer: int | None = None) -> LayerProbe:
        """The probe of a layer, by default of the best. Raises: ProbeError."""
        layer = self.spec.layer if layer is None else layer
        if layer not in self.spec.layers:
            raise ProbeError(f"no probe of layer {layer}; there are of {', '.join(map(str, self.spec.layers))}")
        i = self.spec.layers.index(layer)
        return LayerProbe(layer, self.spec.labels, self.mean[i], self.scale[i], self.weight[i], self.bias[i])

    @cached_property
    def digest(self) -> str:
        """sha256 of the file, whose content is the same for the same probe."""
        return hashlib.sha256(self.data()).hexdigest()

    def data(self) -> bytes:
        """The file's."""
        tensors = {name: getattr(self, name) for name in ("mean", "scale", "weight", "bias")}
        tensors |= {f"fingerprint.{key}": value for key, value in self.fingerprint.items()}
        tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in sorted(tensors.items())}
        return safetensors.numpy.save(tensors, {_SPEC: self.spec.model_dump_json(exclude_none=True)})


@dataclass(frozen=True)
class LayerProbe:
    """The probe of one layer; shapes as in `Probe`, without the layers."""

    layer: int
    labels: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def logits(self, states: np.ndarray) -> np.ndarray:
        """What is read in `states`, [..., hidden], the residual stream's after the layer: [..., labels]."""
        standard = (np.asarray(states, np.float32) - self.mean) / self.scale
        return standard @ self.weight.T + self.bias  # type: ignore[no-any-return]


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the labels, [..., labels]."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)  # type: ignore[no-any-return]


def mark(width: int) -> np.ndarray:
    """The input of a site whose output tells models apart, float32 [1, width]: evenly spaced values of alternating
    signs, few, for a server multiplies each with the weights as they are packed; of length 1."""
    places = np.unique(np.linspace(0, width - 1, _MARKED).round().astype(np.int64))
    values = np.zeros((1, width), np.float32)
    values[0, places] = (1.0 - 2.0 * (np.arange(len(places)) % 2)) / np.sqrt(len(places))
    return values


def fingerprint_of(sites: list[tuple[str, int]], projection: Callable[[str, int], np.ndarray]) -> dict[str, np.ndarray]:
    """The fingerprint of a model by its sites, (kind, layer).

    projection: a site's weight, float32 [hidden, width].
    """
    entries = {}
    for kind, layer in sites:
        weight = projection(kind, layer)
        entries[site_key(kind, layer)] = fingerprint_entries(mark(weight.shape[1]) @ weight.T)
    return entries


def save_probe(probe: Probe, folder: str | os.PathLike[str]) -> Path:
    """Writes it into a folder. Returns: the file."""
    path = Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, probe.data())
    return path


def load_probe(source: str | os.PathLike[str]) -> Probe:
    """Loads a probe from its file, or from the folder that it is in.

    Raises: ProbeError, naming the file and what is wrong with it.
    """
    path = Path(source).expanduser()
    path = path / NAME if path.is_dir() else path
    data = read_bytes(path, ProbeError, MAX_BYTES)
    try:
        tensors = safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise ProbeError(f"{path}: {error}") from None
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    if _SPEC not in metadata:
        raise ProbeError(f"{path}: not a probe: its metadata has no {_SPEC!r}")
    spec = parse_json(str(path), metadata[_SPEC], ProbeSpec, ProbeError)
    prefix = "fingerprint."
    fingerprint = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
    names = {"mean", "scale", "weight", "bias"}
    if tensors.keys() != names:
        raise ProbeError(f"{path}: its tensors are {', '.join(sorted(tensors))}, not {', '.join(sorted(names))}")
    try:
        return Probe(spec, fingerprint=fingerprint, **tensors)
    except ProbeError as error:
        raise ProbeError(f"{path}: {error}") from None
