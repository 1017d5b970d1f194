"""What a request may ask for: `emotion`, its strength, scope and method, and what they resolve to.

Needs neither torch nor vLLM: the server, the engine and offline callers share it.
"""

from __future__ import annotations

import difflib
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
# Objects that clients put fields into, and that no server takes a field from.
NESTS = ("extra_body", "custom_params", "metadata")
# Of objects within objects, how many are looked through for emotion fields.
_DEPTH = 4
# How alike two names are, of 1, for one to be taken for the other misspelt.
_CLOSE = 0.85
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


def refuse_misplaced(fields: Mapping[str, Any]) -> None:
    """Refuses what is meant for an emotion and would be ignored: a field that is misspelt, or in another's object.

    Args:
        fields: those of a request that vLLM does not know itself, ours among them; None counts as not given.
    Raises: EmotionError, which says what is meant.
    """
    steered = any(fields.get(name) is not None for name in FIELDS)
    for name, value in fields.items():
        if name in FIELDS or value is None:
            continue
        if (nested := nested_field(value)) is not None:
            message = (
                f"{nested} has no effect inside of {short(name)}; give it at the top level of the request, beside "
                "`model` (which is where the openai client puts its argument extra_body)"
            )
            raise EmotionError(name[:60], message, "unknown_field")
        if (meant := _meant_field(name, steered)) is not None:
            message = f"{short(name)} is no field of a request; did you mean {meant}? There are {', '.join(FIELDS)}"
            raise EmotionError(name[:60], message, "unknown_field")


def looks_ours(name: str) -> bool:
    """Whether a field's name says that it is about emotions."""
    return name.lower().startswith("emotion")


def nested_field(value: Any, depth: int = _DEPTH) -> str | None:
    """The first field within an object, and within objects in it, that is about emotions."""
    if not isinstance(value, Mapping) or not depth:
        return None
    for name, inner in value.items():
        if isinstance(name, str) and looks_ours(name) and inner is not None:
            return name[:60]
        if (nested := nested_field(inner, depth - 1)) is not None:
            return nested
    return None


def _meant_field(name: str, steered: bool) -> str | None:
    """The field that another name stands for, if any; beside an emotion, `strength` and the like do."""
    misspelt = difflib.get_close_matches(name.lower(), FIELDS, n=1, cutoff=_CLOSE) if name[:1] in "eE" else []
    if not misspelt and steered:
        shorter = [field.removeprefix("emotion_") for field in FIELDS[1:]]
        misspelt = [f"emotion_{close}" for close in difflib.get_close_matches(name.lower(), shorter, 1, _CLOSE)]
    if misspelt:
        return misspelt[0]
    return FIELDS[0] if looks_ours(name) else None


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
