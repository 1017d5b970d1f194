"""The circuit: for each emotion, the MLP neurons and attention heads that write it and the difference vector of each
(arXiv 2510.11328, section 5). It needs neither torch nor vLLM.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from emovllm.errors import CircuitError

FORMAT_VERSION: Literal[1] = 1
# Entries of W @ delta that are kept per sublayer and emotion to recognise the model by.
FINGERPRINT_SIZE = 16
# By how much the norm of a direction may differ from 1.
_UNIT = 1e-3

Scope = Literal["generation", "prompt_last", "all"]
# Words that stand where an emotion's name may, and mean something else there.
RESERVED = {
    "none": "asks for the plain model",
    "mix": "counts blends in metrics",
    "neutral": "is what judges say of a text without an emotion",
    "all": "is the row of all emotions in tables",
}


def _not_reserved(name: str) -> str:
    if name in RESERVED:
        message = "no emotion can be called '{name}', which {meaning}; rename it"
        raise PydanticCustomError("reserved", message, {"name": name, "meaning": RESERVED[name]})
    return name


EmotionName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$"), AfterValidator(_not_reserved)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Model):
    """The model that a circuit belongs to, by its dimensions (names as in a Hugging Face config)."""

    id: str
    architecture: str
    num_hidden_layers: Annotated[int, Field(gt=0)]
    hidden_size: Annotated[int, Field(gt=0)]
    intermediate_size: Annotated[int, Field(gt=0)]
    num_attention_heads: Annotated[int, Field(gt=0)]
    head_dim: Annotated[int, Field(gt=0)]
    vocab_size: Annotated[int, Field(gt=0)]


class EmotionSpec(_Model):
    """What a client may ask of one emotion.

    `recommended` is the lambda of method section 8 that strength 1.0 stands for; `maximal` is the largest
    |lambda| that a request may reach. `scores` are the figures by which a calibration chose `recommended`, the best of
    those it tried: no evaluation.
    """

    name: EmotionName
    recommended: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    maximal: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    scores: dict[str, Finite] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _recommended_within_maximal(self) -> EmotionSpec:
        if self.recommended > self.maximal:
            raise ValueError(f"{self.name}: recommended {self.recommended} is above maximal {self.maximal}")
        return self


class CircuitSpec(_Model):
    """All of `circuit.json`."""

    format: Literal["emovllm-circuit"] = "emovllm-circuit"
    format_version: Literal[1] = FORMAT_VERSION
    model: ModelSpec
    emotions: Annotated[tuple[EmotionSpec, ...], Field(min_length=1)]
    scope: Scope = "generation"
    provenance: dict[str, Any] = Field(default_factory=dict)
    tensors_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""

    @model_validator(mode="after")
    def _unique_names(self) -> CircuitSpec:
        names = [emotion.name for emotion in self.emotions]
        if len(set(names)) != len(names):
            raise ValueError(f"emotions are named twice: {names}")
        return self

    def emotion(self, name: str) -> EmotionSpec:
        """Raises: KeyError."""
        for emotion in self.emotions:
            if emotion.name == name:
                return emotion
        raise KeyError(name)


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """One emotion's units of one kind: `layer` [k], `index` [k], `delta` [k] for neurons, [k, head_dim] for heads."""

    layer: np.ndarray
    index: np.ndarray
    delta: np.ndarray

    def __len__(self) -> int:
        return len(self.layer)

    def at(self, layer: int) -> Components:
        """The units of one layer."""
        here = self.layer == layer
        return Components(self.layer[here], self.index[here], self.delta[here])


@dataclass(frozen=True, slots=True, eq=False)
class Circuit:
    """A circuit in memory; `neurons` and `heads` are keyed by emotion name.

    `fingerprint` holds, for each site (`mlp.3`, `attn.0`, ...) with units, `FINGERPRINT_SIZE` evenly spaced entries
    of `W @ delta` for each emotion, float32 [emotions, FINGERPRINT_SIZE], W being the weight of the down or output
    projection: a server compares them with what its own weights give, and so knows the model.

    `directions`, where there are any, holds each emotion's directions of the residual stream after each layer, float32
    [layers, hidden], of unit norm or zero: what the steering baseline adds.
    """

    spec: CircuitSpec
    neurons: Mapping[str, Components]
    heads: Mapping[str, Components]
    fingerprint: Mapping[str, np.ndarray] = field(default_factory=dict)
    directions: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = self.spec.model
        for kind, units, count, shape in (
            ("neurons", self.neurons, model.intermediate_size, ()),
            ("heads", self.heads, model.num_attention_heads, (model.head_dim,)),
        ):
            if sorted(units) != sorted(self.names):
                raise CircuitError(f"{kind} are of {sorted(units)}, but the emotions are {sorted(self.names)}")
            for name in self.names:
                _check_components(f"{name}.{kind}", units[name], model.num_hidden_layers, count, shape)
        self._check_fingerprint()
        self._check_directions()

    @classmethod
    def fingerprinted(
        cls,
        spec: CircuitSpec,
        neurons: Mapping[str, Components],
        heads: Mapping[str, Components],
        weight_of: Callable[[str, int], np.ndarray],
        directions: Mapping[str, np.ndarray] | None = None,
    ) -> Circuit:
        """A new circuit with the fingerprint of its model; `weight_of(kind, layer)` is the projection's weight,
        float32 [hidden, width]. Raises: CircuitError."""
        blank = np.zeros((len(spec.emotions), FINGERPRINT_SIZE), np.float32)
        sites = _sites(neurons, heads)
        circuit = cls(spec, neurons, heads, {site_key(*site): blank for site in sites})
        return cls(spec, neurons, heads, measure_fingerprint(circuit, weight_of), directions or {})

    def _check_fingerprint(self) -> None:
        expected = {site_key(kind, layer) for kind, layer in self.sites()}
        if set(self.fingerprint) != expected:
            odd = sorted(set(self.fingerprint) ^ expected)[:4]
            raise CircuitError(f"the fingerprint does not cover exactly the circuit's sites (see {', '.join(odd)})")
        for key, values in self.fingerprint.items():
            if values.dtype != np.float32 or values.shape != (len(self.names), FINGERPRINT_SIZE):
                raise CircuitError(f"fingerprint of {key} has {values.dtype} {values.shape}")
            if not np.isfinite(values).all():
                raise CircuitError(f"fingerprint of {key} is not finite")

    def _check_directions(self) -> None:
        if not self.directions:
            return
        if sorted(self.directions) != sorted(self.names):
            raise CircuitError(
                f"directions are of {sorted(self.directions)}, but the emotions are {sorted(self.names)}"
            )
        shape = (self.spec.model.num_hidden_layers, self.spec.model.hidden_size)
        for name, values in self.directions.items():
            if values.dtype != np.float32 or values.shape != shape:
                raise CircuitError(f"directions of {name}: expected float32 {shape}, got {values.dtype} {values.shape}")
            norms = np.linalg.norm(values.astype(np.float64), axis=1)
            # An emotion without a direction in some layer has zeros there.
            if not ((np.abs(norms - 1) < _UNIT) | (norms == 0)).all():
                raise CircuitError(f"directions of {name} are not of unit norm")

    @property
    def names(self) -> tuple[str, ...]:
        """The emotions, in the circuit's order (the order of every `emotions` axis)."""
        return tuple(emotion.name for emotion in self.spec.emotions)

    def sites(self) -> list[tuple[str, int]]:
        """The (kind, layer) pairs that have a unit of any emotion, in the order A0, M0, A1, ..."""
        return _sites(self.neurons, self.heads)

    def site_delta(self, kind: str, layer: int) -> np.ndarray:
        """The unfolded injection of one site.

        Returns: float32 [emotions, width], width being that of the projection's input (intermediate_size for
        `mlp`, heads * head_dim for `attn`), zero outside the circuit's units.
        """
        model = self.spec.model
        if kind == "mlp":
            out = np.zeros((len(self.names), model.intermediate_size), np.float32)
            for row, name in zip(out, self.names, strict=True):
                units = self.neurons[name].at(layer)
                row[units.index] = units.delta
            return out
        out = np.zeros((len(self.names), model.num_attention_heads, model.head_dim), np.float32)
        for row, name in zip(out, self.names, strict=True):
            units = self.heads[name].at(layer)
            row[units.index] = units.delta
        return out.reshape(len(self.names), -1)

    def digest(self) -> str:
        """Identifies what the circuit does and accepts: sha256 over its JSON (provenance apart) and its tensors."""
        content = self.spec.model_dump(mode="json", exclude={"provenance", "tensors_sha256"})
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name}{tensor.dtype.str}{tensor.shape}".encode())
            digest.update(np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()

    def tensors(self) -> dict[str, np.ndarray]:
        """By their names in the file."""
        tensors = {f"fingerprint.{key}": values for key, values in self.fingerprint.items()}
        for kind, units in (("neurons", self.neurons), ("heads", self.heads)):
            for name, components in units.items():
                for part in ("layer", "index", "delta"):
                    tensors[f"{name}.{kind}.{part}"] = getattr(components, part)
        tensors |= {f"directions.{name}": values for name, values in self.directions.items()}
        return tensors


def _sites(neurons: Mapping[str, Components], heads: Mapping[str, Components]) -> list[tuple[str, int]]:
    used = {("attn", int(layer)) for units in heads.values() for layer in units.layer}
    used |= {("mlp", int(layer)) for units in neurons.values() for layer in units.layer}
    return sorted(used, key=lambda site: (site[1], site[0]))


def site_key(kind: str, layer: int) -> str:
    return f"{kind}.{layer}"


def measure_fingerprint(circuit: Circuit, weight_of: Callable[[str, int], np.ndarray]) -> dict[str, np.ndarray]:
    """The fingerprint that a circuit has on a model; `weight_of` as for `Circuit.fingerprinted`."""
    return {
        site_key(*site): fingerprint_entries(circuit.site_delta(*site) @ weight_of(*site).T) for site in circuit.sites()
    }


def fingerprint_entries(folded: np.ndarray) -> np.ndarray:
    """The entries of `W @ delta` ([emotions, hidden]) that a fingerprint keeps: [emotions, FINGERPRINT_SIZE]."""
    picked = np.linspace(0, folded.shape[1] - 1, FINGERPRINT_SIZE).round().astype(np.int64)
    return np.ascontiguousarray(folded[:, picked], dtype=np.float32)


def fingerprint_distance(measured: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Relative distance ||measured - expected|| / ||expected|| over the sites in `measured`; about 1.4 for
    unrelated models, below 0.01 for the same weights in another floating-point type."""
    wrong = sum(float(np.square(np.float64(measured[key]) - expected[key]).sum()) for key in measured)
    norm = sum(float(np.square(np.float64(expected[key])).sum()) for key in measured)
    if norm == 0:
        return 0.0 if wrong == 0 else math.inf
    return math.sqrt(wrong / norm)


def _check_components(what: str, units: Components, layers: int, count: int, shape: tuple[int, ...]) -> None:
    for part in ("layer", "index"):
        values = getattr(units, part)
        if values.dtype != np.int32 or values.ndim != 1 or len(values) != len(units.delta):
            raise CircuitError(f"{what}.{part}: expected int32 [{len(units.delta)}], got {values.dtype} {values.shape}")
    if units.delta.dtype != np.float32 or units.delta.shape[1:] != shape:
        raise CircuitError(
            f"{what}.delta: expected float32 [k{''.join(f', {n}' for n in shape)}], "
            f"got {units.delta.dtype} {units.delta.shape}"
        )
    if not np.isfinite(units.delta).all():
        raise CircuitError(f"{what}.delta: has a value that is not finite")
    for part, limit in (("layer", layers), ("index", count)):
        values = getattr(units, part)
        if len(values) and not (values.min() >= 0 and values.max() < limit):
            raise CircuitError(f"{what}.{part}: outside 0..{limit - 1}")
    if len(np.unique(units.layer.astype(np.int64) * count + units.index)) != len(units):
        raise CircuitError(f"{what}: a unit is listed twice")
