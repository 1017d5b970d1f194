"""What a request may ask for: `emotion`, its strength, scope and method, and what they resolve to.

Needs neither torch nor vLLM: the server, the engine and offline callers share it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from emovllm.circuit import CircuitSpec, Scope
from emovllm.errors import EmotionError

Method = Literal["circuit", "steering"]
FIELDS = ("emotion", "emotion_strength", "emotion_scope", "emotion_method")
SCOPES: tuple[Scope, ...] = get_args(Scope)
METHODS: tuple[Method, ...] = get_args(Method)
# The largest strength of steering, whose 1.0 is the paper's: beyond, a model only stammers.
MAX_STEERING = 4.0


@dataclass(frozen=True, slots=True)
class Emotion:
    """A request's emotion, resolved against a circuit.

    `weights` are the lambdas of method section 8, (emotion, lambda) sorted by name, none of them 0. With the method
    `steering`, the baseline that evaluations compare with, they count in `emovllm.baseline.RATIO`.
    """

    weights: tuple[tuple[str, float], ...]
    scope: Scope
    method: Method = "circuit"

    def to_wire(self, circuit_digest: str) -> dict[str, Any]:
        """The form that travels in `SamplingParams.extra_args["emovllm"]`, to engine and workers."""
        wire = {"circuit": circuit_digest, "weights": dict(self.weights), "scope": self.scope}
        return wire if self.method == "circuit" else {**wire, "method": self.method}

    @staticmethod
    def from_wire(wire: Mapping[str, Any]) -> Emotion:
        return Emotion(tuple(wire["weights"].items()), wire["scope"], wire.get("method", "circuit"))


def cache_key(wire: Mapping[str, Any]) -> str:
    """A stable text for the prefix cache: equal exactly when the injected vectors and positions are."""
    return json.dumps([wire["circuit"], sorted(wire["weights"].items()), wire["scope"], wire.get("method", "circuit")])


def resolve(
    fields: Mapping[str, Any], circuit: CircuitSpec, methods: Sequence[Method] = ("circuit",)
) -> Emotion | None:
    """Checks a request's fields against a circuit.

    Args:
        fields: any of `emotion` (a name, or a dict of weights), `emotion_strength` (a number, 1.0 being the
            circuit's recommendation), `emotion_scope` and `emotion_method`. None counts as not given.
        methods: those that can be served.
    Returns: None where nothing is to be injected.
    Raises: EmotionError, with the accepted values in its message.
    """
    emotion, strength, scope, method = (fields.get(name) for name in FIELDS)
    if emotion is None:
        for name in FIELDS[1:]:
            if fields.get(name) is not None:
                raise EmotionError(name, f"{name} needs `emotion`: {_accepted(circuit)}")
        return None
    factor = 1.0 if strength is None else _number("emotion_strength", strength, "a finite number, such as 1.0")
    weights = _weights(emotion, circuit)
    if scope is not None and scope not in SCOPES:
        raise EmotionError("emotion_scope", f"emotion_scope must be one of {', '.join(SCOPES)}, got {short(scope)}")
    method = _method(method, methods)
    lambdas = {}
    for name, weight in weights.items():
        spec = circuit.emotion(name)
        unit, maximal = (1.0, MAX_STEERING) if method == "steering" else (spec.recommended, spec.maximal)
        value = weight * factor * unit
        if not abs(value) <= maximal * (1 + 1e-9):
            limit = "steering's" if method == "steering" else "the circuit's"
            raise EmotionError(
                "emotion" if strength is None else "emotion_strength",
                f"{name} at strength {weight * factor:g} is over {limit} maximum of "
                f"{maximal / unit:g} (1.0 is the recommended strength)",
                "over_maximum",
            )
        if value != 0:
            lambdas[name] = value
    return Emotion(tuple(sorted(lambdas.items())), scope or circuit.scope, method) if lambdas else None


def _method(method: Any, methods: Sequence[Method]) -> Method:
    if method is None:
        return "circuit"
    if method not in METHODS:
        raise EmotionError("emotion_method", f"emotion_method must be one of {', '.join(methods)}, got {short(method)}")
    if method not in methods:
        raise EmotionError(
            "emotion_method",
            f"emotion_method {method} is for evaluation: the engine must be started with it, by "
            'additional_config {"emovllm": {"steering": true}} and a circuit that holds directions',
        )
    return method  # type: ignore[no-any-return]


def _weights(emotion: Any, circuit: CircuitSpec) -> dict[str, float]:
    names = {spec.name for spec in circuit.emotions}
    if isinstance(emotion, str):
        emotion = {emotion: 1.0}
    if not isinstance(emotion, Mapping):
        raise EmotionError(
            "emotion", f"emotion must be a name or an object of weights, got {short(emotion)}; {_accepted(circuit)}"
        )
    if not emotion:
        raise EmotionError("emotion", f"emotion is empty; {_accepted(circuit)}")
    for name in emotion:
        if name not in names:
            raise EmotionError("emotion", f"unknown emotion {short(name)}; {_accepted(circuit)}", "unknown_emotion")
    return {
        name: _number("emotion", weight, f'a finite number for each emotion, such as {{"{name}": 0.5}}')
        for name, weight in emotion.items()
    }


def _number(parameter: str, value: Any, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EmotionError(parameter, f"{parameter} must be {expected}, got {short(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise EmotionError(parameter, f"{parameter} must be {expected}, got {short(value)}")
    return number


def _accepted(circuit: CircuitSpec) -> str:
    return f"this circuit has {', '.join(spec.name for spec in circuit.emotions)}"


def short(value: Any) -> str:
    """A client's value as an error message may repeat it: what it is, and no more than 60 characters of it."""
    text = value if isinstance(value, str) else type(value).__name__ if isinstance(value, list | dict) else str(value)
    return repr(text[:60] + "..." if len(text) > 60 else text)
