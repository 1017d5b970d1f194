"""What a server's circuits are to requests: `Served`, and an emotion as it is served, `Applied`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from emovllm.baseline import layer_key, steered_layers
from emovllm.circuit import Circuit
from emovllm.emotion import Emotion, Method, Target, Wire
from emovllm.fields import Mute
from emovllm.fingerprint import site_key
from emovllm.instructions import Instruction
from emovllm.schedule import Schedule
from emovllm.spec import CircuitSpec


@dataclass(frozen=True, slots=True)
class Served:
    """A circuit that engines of this process serve; its emotions have the columns of coefficients from `first` on."""

    name: str
    spec: CircuitSpec
    digest: str
    sites: frozenset[str]
    first: int

    @classmethod
    def of(cls, name: str, circuit: Circuit, first: int, methods: Sequence[Method] = ("circuit",)) -> Served:
        sites = {site_key(kind, layer) for kind, layer in circuit.sites()}
        if "steering" in methods:
            sites |= {layer_key(layer) for layer in steered_layers(circuit.spec.model.num_hidden_layers)}
        return cls(name, circuit.spec, circuit.digest(), frozenset(sites), first)

    @property
    def columns(self) -> range:
        return range(self.first, self.first + len(self.spec.emotions))


class Applied(NamedTuple):
    """A request's emotion as it is served. `emotion` is None where nothing is injected, as at strength 0, or where all
    of the reply is spared (`plain`)."""

    served: Served
    mix: Mapping[str, float]
    strength: float
    emotion: Emotion | None
    scope: str
    method: Method = "circuit"
    schedule: Schedule | None = None
    target: Target | None = None
    mute: tuple[Mute, ...] = ()
    plain: bool = False
    start: int | None = None
    instruction: Instruction | None = None

    def body(self) -> dict[str, Any]:
        """For the response: `mix` and `strength` as asked, 1.0 being the recommendation, and what they apply to."""
        circuit = {"name": self.served.name, "digest": self.served.digest}
        told = {"mix": dict(self.mix), "strength": self.strength, "scope": self.scope, "circuit": circuit}
        return told | self._further()

    def header(self) -> str:
        """The same in a line: `anger=0.7, fear=0.3; strength=1; scope=generation; circuit=default/451b4aea3bfa`."""
        mix = ", ".join(f"{name}={weight:g}" for name, weight in self.mix.items())
        circuit = f"{self.served.name}/{self.served.digest[:12]}"
        told = "".join(f"; {name}={_in_line(value)}" for name, value in self._further().items())
        return f"{mix}; strength={self.strength:g}; scope={self.scope}; circuit={circuit}{told}"

    def _further(self) -> dict[str, Any]:
        """What not every reply tells."""
        further = {
            "schedule": self.schedule.body() if self.schedule is not None else None,
            "target": self.target.body() if self.target is not None else None,
            "mute": list(self.mute) or None,
            "steered": False if self.plain else None,
            "from": self.start,
            "prompt": self.instruction.style if self.instruction is not None else None,
            "method": self.method if self.method != "circuit" else None,
        }
        return {name: value for name, value in further.items() if value is not None}

    def wire(self) -> Wire | None:
        """For engine and workers."""
        return self.emotion.wire(self.served.digest) if self.emotion is not None else None


def _in_line(value: Any) -> str:
    if value is False:
        return "no"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value)
