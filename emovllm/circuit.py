"""The circuit: for each emotion, the MLP neurons and attention heads that write it and the difference vector of each
(arXiv 2510.11328, section 5). It needs neither torch nor vLLM.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from emovllm.errors import CircuitError
from emovllm.experts import RoutedNeurons, check_routed
from emovllm.fingerprint import FINGERPRINT_SIZE, fingerprint_entries, site_key
from emovllm.spec import CircuitSpec

# By how much the norm of a direction may differ from 1.
_UNIT = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """One emotion's units of one kind: `layer` [k], `index` [k], `delta` [k] for neurons, [k, head_dim] for heads.

    Where layers' heads differ in size, `delta` is as wide as the largest, and zero beyond a head's own.
    """

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

    `experts`, where the circuit acts on routed experts, holds their neurons by emotion, folded into vectors. No weight
    that a server has at hand made these: at such a site, `experts.3`, the fingerprint is what the layer's router says
    of the vectors.

    `directions`, where there are any, holds each emotion's directions of the residual stream after each layer, float32
    [layers, hidden], of unit norm or zero: what the steering baseline adds.
    """

    spec: CircuitSpec
    neurons: Mapping[str, Components]
    heads: Mapping[str, Components]
    fingerprint: Mapping[str, np.ndarray] = field(default_factory=dict)
    directions: Mapping[str, np.ndarray] = field(default_factory=dict)
    experts: Mapping[str, RoutedNeurons] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = self.spec.model
        neurons, heads = model.per_layer("neurons"), model.per_layer("heads")
        for kind, units, counts, shape in (
            ("neurons", self.neurons, neurons, ()),
            ("heads", self.heads, heads, (model.head_dim,)),
        ):
            if sorted(units) != sorted(self.names):
                raise CircuitError(f"{kind} are of {sorted(units)}, but the emotions are {sorted(self.names)}")
            for name in self.names:
                _check_components(f"{name}.{kind}", units[name], counts, shape)
        for name in self.names:
            _check_padding(f"{name}.heads.delta", self.heads[name], model.per_layer("head_dim"))
        self._check_experts()
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
        experts: Mapping[str, RoutedNeurons] | None = None,
    ) -> Circuit:
        """A new circuit with the fingerprint of its model; `weight_of(kind, layer)` is the projection's weight,
        float32 [hidden, width], and of `experts` the router's, [experts, hidden]. Raises: CircuitError."""
        blank = np.zeros((len(spec.emotions), FINGERPRINT_SIZE), np.float32)
        sites = _sites(neurons, heads, experts or {})
        circuit = cls(spec, neurons, heads, {site_key(*site): blank for site in sites}, experts=experts or {})
        return replace(circuit, fingerprint=measure_fingerprint(circuit, weight_of), directions=directions or {})

    def _check_experts(self) -> None:
        expected = sorted(self.names) if self.spec.model.has_experts else []
        if sorted(self.experts) != expected:
            raise CircuitError(
                f"neurons of routed experts are of {sorted(self.experts)}, and by model.layers they would be of "
                f"{expected}"
            )
        for name, routed in self.experts.items():
            check_routed(f"{name}.experts", routed, self.spec.model)

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
        """The (kind, layer) pairs that have a unit of any emotion, in the order A0, M0, A1, ...; the kinds are `attn`,
        `experts` and `mlp`."""
        return _sites(self.neurons, self.heads, self.experts)

    def site_delta(self, kind: str, layer: int) -> np.ndarray:
        """The unfolded injection of one site.

        Returns: float32 [emotions, width], width being that of the projection's input (the layer's neurons for `mlp`,
        heads * head_dim for `attn`), zero outside the circuit's units. Of `experts`, which are folded already, it is
        what is added to the output of their block, [emotions, hidden].
        """
        if kind == "experts":
            return np.stack([self.experts[name].vectors[layer] for name in self.names])
        there = self.spec.model.layer(layer)
        if kind == "mlp":
            out = np.zeros((len(self.names), there.neurons), np.float32)
            for row, name in zip(out, self.names, strict=True):
                units = self.neurons[name].at(layer)
                row[units.index] = units.delta
            return out
        out = np.zeros((len(self.names), there.heads, there.head_dim), np.float32)
        for row, name in zip(out, self.names, strict=True):
            units = self.heads[name].at(layer)
            row[units.index] = units.delta[:, : there.head_dim]
        return out.reshape(len(self.names), -1)

    def digest(self) -> str:
        """Identifies what the circuit does and accepts: sha256 over its JSON (provenance apart) and its tensors."""
        content = self.spec.model_dump(mode="json", exclude={"provenance", "tensors_sha256"}, exclude_none=True)
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
        for name, routed in self.experts.items():
            tensors |= {f"{name}.experts.{part}": values for part, values in routed.parts().items()}
        tensors |= {f"directions.{name}": values for name, values in self.directions.items()}
        return tensors


def _sites(
    neurons: Mapping[str, Components], heads: Mapping[str, Components], experts: Mapping[str, RoutedNeurons]
) -> list[tuple[str, int]]:
    used: set[tuple[str, int]] = set()
    for kind, of_kind in (("attn", heads), ("mlp", neurons), ("experts", experts)):
        used |= {(kind, int(layer)) for units in of_kind.values() for layer in units.layer}
    return sorted(used, key=lambda site: (site[1], site[0]))


def _check_components(what: str, units: Components, counts: Sequence[int], shape: tuple[int, ...]) -> None:
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
    if not ((units.layer >= 0) & (units.layer < len(counts))).all():
        raise CircuitError(f"{what}.layer: outside 0..{len(counts) - 1}")
    limits = np.array(counts)[units.layer]
    if not ((units.index >= 0) & (units.index < limits)).all():
        odd = units.layer[(units.index < 0) | (units.index >= limits)][0]
        raise CircuitError(
            f"{what}.index: outside 0..{counts[odd] - 1}" if counts[odd] else f"{what}: layer {odd} has none"
        )
    if len(np.unique(units.layer.astype(np.int64) * max(counts) + units.index)) != len(units):
        raise CircuitError(f"{what}: a unit is listed twice")


def _check_padding(what: str, units: Components, widths: Sequence[int]) -> None:
    beyond = np.arange(units.delta.shape[1]) >= np.array(widths)[units.layer][:, None]
    if units.delta[beyond].any():
        raise CircuitError(f"{what}: has a value beyond the size of its layer's heads")


def measure_fingerprint(circuit: Circuit, weight_of: Callable[[str, int], np.ndarray]) -> dict[str, np.ndarray]:
    """The fingerprint that a circuit has on a model; `weight_of` as for `Circuit.fingerprinted`."""
    return {
        site_key(*site): fingerprint_entries(circuit.site_delta(*site) @ weight_of(*site).T) for site in circuit.sites()
    }
