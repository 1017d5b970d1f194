"""What a request may ask for: `emotion`, its strength, scope and method, and how it goes on in time.

A request's fields are read once, into `Options`; these and a circuit make an `Emotion`. Needs neither torch nor vLLM:
the server, the engine and offline callers share it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, WithJsonSchema

from emovllm.emotion import ANSWER, MAX_TAIL, METHODS, NONE, SCOPES, TAIL, Emotion, Method, Target
from emovllm.errors import EmotionError
from emovllm.phases import Phase
from emovllm.readout import DETAILS, Detail
from emovllm.schedule import Schedule
from emovllm.spec import CircuitSpec

# What of a reply can be spared.
Mute = Literal["tools", "guided"]
MUTES: tuple[Mute, ...] = get_args(Mute)
# The largest strength of steering, whose 1.0 is the paper's: beyond, a model only stammers.
MAX_STEERING = 4.0
# How fast a strength follows what is read, by token.
DEFAULT_RATE = 0.5
MAX_RATE = 100.0

_SCOPE = rf"^(?:{'|'.join(SCOPES)}|{ANSWER}|{TAIL}[1-9][0-9]{{0,2}})$"
_NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}}
_SCHEDULE = {
    "anyOf": [
        _NUMBERS,
        {"type": "array", "items": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}},
        {"type": "null"},
    ]
}
_TARGET = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, _NUMBERS, {"type": "null"}]}

Weights = Annotated[dict[str, float], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Options:
    """What a request asks for, by field; None where it is not given. A name stands for its weight of 1.

    The descriptions are those of the server's OpenAPI document.
    """

    emotion: Annotated[
        str | Weights | None,
        Field(
            description="An emotion that GET /v1/emotions lists, weights of several, or `none` for the plain model.",
            examples=["anger", {"anger": 0.7, "fear": 0.3}],
        ),
    ] = None
    emotion_strength: Annotated[
        float | None, Field(description="1.0 is the recommended strength and the default; negative suppresses.")
    ] = None
    emotion_scope: Annotated[
        str | None,
        WithJsonSchema({"anyOf": [{"type": "string", "pattern": _SCOPE}, {"type": "null"}]}),
        Field(
            description="What is steered: the prompt's last token and the reply (`generation`), the former alone "
            "(`prompt_last`), all of both (`all`), the reply but for its thinking (`answer`), or the prompt's last N "
            "tokens and the reply (`prompt_tail:N`).",
            examples=["generation", "answer", "prompt_tail:8"],
        ),
    ] = None
    emotion_method: Annotated[
        Method | None,
        Field(description="The baseline `steering` is for evaluations: the engine must be started with it."),
    ] = None
    emotion_schedule: Annotated[
        Schedule | None,
        WithJsonSchema(_SCHEDULE),
        Field(
            description="The share of the strength, 0 to 1, by token of the reply: held and then halved every "
            "half_life tokens, from one token to before another, or a line through points. Of the scope `generation`.",
            examples=[{"hold": 20, "half_life": 40}, {"from": 8, "to": 64}, [[0, 1], [50, 0.3]]],
        ),
    ] = None
    emotion_mute: Annotated[
        list[Mute] | None,
        Field(
            description="What is not steered though it is of the reply: calls of `tools`, on by default where the "
            "server has a tool parser, and `guided` output, such as JSON of a schema.",
            examples=[["tools"], []],
        ),
    ] = None
    emotion_target: Annotated[
        Target | None,
        WithJsonSchema(_TARGET),
        Field(
            description="The probability that the read-out is to give the emotion, 0 to 1: the strength follows, token "
            "by token, within its maximum. The engine must be started with --readout.",
            examples=[0.6, {"level": 0.6, "rate": 0.5}],
        ),
    ] = None
    emotion_readout: Annotated[
        Detail | None,
        Field(
            description="What a probe reads in the states that wrote the reply: of the whole `reply`, or of its "
            "`tokens` too. Plain requests may ask as well; the engine must be started with --readout."
        ),
    ] = None

    @classmethod
    def read(cls, fields: Mapping[str, Any], accepted: Callable[[], str] = str) -> Options:
        """Reads a request's fields, each of its type; those that are not ours are left alone.

        Args:
            accepted: tells the emotions that there are, for messages.
        Raises: EmotionError.
        """
        given = {name: value for name in FIELDS if (value := fields.get(name)) is not None}
        emotion = given.get("emotion")
        if emotion is None or emotion == NONE:
            for name in given.keys() - {"emotion", "emotion_readout"}:
                if emotion is None:
                    raise EmotionError(name, f"{name} needs `emotion`: {accepted()}")
                raise EmotionError(name, f"{name} has no meaning with emotion {NONE!r}")
            given.pop("emotion", None)
        read = {name: _READERS[name](value, accepted) for name, value in given.items()}
        return cls(**({"emotion": emotion} | read))

    @property
    def weights(self) -> dict[str, float]:
        """What is asked for of each emotion; nothing, for the plain model."""
        return self.emotion if isinstance(self.emotion, dict) else {}

    @property
    def strength(self) -> float:
        return 1.0 if self.emotion_strength is None else self.emotion_strength

    @property
    def method(self) -> Method:
        return self.emotion_method or "circuit"

    @property
    def strength_field(self) -> str:
        """The field at fault where an emotion is too strong."""
        return "emotion" if self.emotion_strength is None else "emotion_strength"

    def of(self, circuit: CircuitSpec, methods: Sequence[Method] = ("circuit",)) -> Emotion | None:
        """What the options are, of a circuit; None where nothing is to be injected.

        Args:
            methods: those that can be served.
        Raises: EmotionError, with the accepted values in its message.
        """
        if self.method not in methods:
            raise EmotionError(
                "emotion_method",
                f"emotion_method {self.method} is for evaluation: the engine must be started with it, by "
                'additional_config {"emovllm": {"steering": true}} and a circuit that holds directions',
            )
        lambdas = {name: self._lambda(name, weight * self.strength, circuit) for name, weight in self.weights.items()}
        weights = tuple(sorted((name, value) for name, value in lambdas.items() if value != 0))
        scope = self.emotion_scope or circuit.scope
        for name, value in (("emotion_schedule", self.emotion_schedule), ("emotion_target", self.emotion_target)):
            if value is not None and not over_reply(scope):
                message = f"{name} is of the reply: it needs a scope that goes on, such as generation, not {scope}"
                raise EmotionError(name, message)
        muted: tuple[Phase, ...] = ("thinking",) if scope == ANSWER else ()
        if "tools" in (self.emotion_mute or ()):
            muted += ("tools",)
        target = self._target(lambdas, circuit)
        return Emotion(weights, scope, self.method, self.emotion_schedule, muted, target) if weights else None

    def _target(self, lambdas: Mapping[str, float], circuit: CircuitSpec) -> Target | None:
        """With the gain at which an emotion is at its maximum. Raises: EmotionError."""
        if self.emotion_target is None:
            return None
        if not lambdas or min(lambdas.values()) <= 0:
            raise EmotionError("emotion_target", "emotion_target needs emotions of a strength above 0, to begin with")
        steering = self.method == "steering"
        cap = min((MAX_STEERING if steering else circuit.emotion(name).maximal) / lambdas[name] for name in lambdas)
        return self.emotion_target._replace(cap=cap)

    def _lambda(self, name: str, strength: float, circuit: CircuitSpec) -> float:
        try:
            spec = circuit.emotion(name)
        except KeyError:
            message = f"unknown emotion {short(name)}; {accepted_by(circuit)}"
            raise EmotionError("emotion", message, "unknown_emotion") from None
        steering = self.method == "steering"
        unit, maximal = (1.0, MAX_STEERING) if steering else (spec.recommended, spec.maximal)
        if not abs(strength * unit) <= maximal * (1 + 1e-9):
            raise EmotionError(
                self.strength_field,
                f"{name} at strength {strength:g} is over {'steering' if steering else 'the circuit'}'s maximum of "
                f"{maximal / unit:g} (1.0 is the recommended strength)",
                "over_maximum",
            )
        return strength * unit


def over_reply(scope: str) -> bool:
    """Whether a scope ends with the reply, and not before."""
    return scope not in ("prompt_last", "all")


FIELDS = tuple(field.name for field in dataclasses.fields(Options))


def json_schema() -> dict[str, Any]:
    """The JSON schema of each field."""
    properties: dict[str, Any] = TypeAdapter(Options).json_schema()["properties"]
    return properties


def resolve(
    fields: Mapping[str, Any], circuit: CircuitSpec, methods: Sequence[Method] = ("circuit",)
) -> Emotion | None:
    """`Options.read`, of one circuit: what a request's fields resolve to; None where nothing is to be injected.

    Raises: EmotionError, with the accepted values in its message.
    """
    return Options.read(fields, lambda: accepted_by(circuit)).of(circuit, methods)


def _read_weights(emotion: Any, accepted: Callable[[], str]) -> dict[str, float]:
    if isinstance(emotion, str):
        return {emotion: 1.0}
    if not isinstance(emotion, Mapping):
        message = f"emotion must be a name or an object of weights, got {short(emotion)}; {accepted()}"
        raise EmotionError("emotion", message)
    if not emotion:
        raise EmotionError("emotion", f"emotion is empty; {accepted()}")
    return {name: _read_weight(name, weight) for name, weight in emotion.items()}


def _read_weight(name: Any, weight: Any) -> float:
    return _read_number("emotion", weight, f'a finite number for each emotion, such as {{"{str(name)[:60]}": 0.5}}')


def _read_number(parameter: str, value: Any, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EmotionError(parameter, f"{parameter} must be {expected}, got {short(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise EmotionError(parameter, f"{parameter} must be {expected}, got {short(value)}")
    return number


def _read_choice(parameter: str, value: Any, choices: Sequence[str]) -> Any:
    if value not in choices:
        raise EmotionError(parameter, f"{parameter} must be one of {', '.join(choices)}, got {short(value)}")
    return value


def _read_scope(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(_SCOPE, value):
        choices = ", ".join((*SCOPES, ANSWER, f"{TAIL}N"))
        raise EmotionError("emotion_scope", f"emotion_scope must be one of {choices}, got {short(value)}")
    if value.startswith(TAIL) and int(value.removeprefix(TAIL)) > MAX_TAIL:
        raise EmotionError("emotion_scope", f"emotion_scope {TAIL}N goes up to {MAX_TAIL} tokens, got {short(value)}")
    return value


def _read_mute(value: Any) -> list[Mute]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise EmotionError("emotion_mute", f'emotion_mute must be a list, such as ["tools"], got {short(value)}')
    return [_read_choice("emotion_mute", what, MUTES) for what in value]


def _read_target(value: Any) -> Target:
    fields = value if isinstance(value, Mapping) else {"level": value}
    if "level" not in fields or not fields.keys() <= {"level", "rate"}:
        message = f'emotion_target must be a number from 0 to 1, or {{"level": 0.6, "rate": {DEFAULT_RATE}}}'
        raise EmotionError("emotion_target", message)
    level = _read_number("emotion_target", fields["level"], "a probability from 0 to 1")
    rate = _read_number("emotion_target", fields.get("rate", DEFAULT_RATE), "a rate above 0")
    if not 0 <= level <= 1:
        raise EmotionError("emotion_target", f"emotion_target must be a probability from 0 to 1, got {level:g}")
    if not 0 < rate <= MAX_RATE:
        raise EmotionError("emotion_target", f"emotion_target's rate must be above 0 and at most {MAX_RATE:g}")
    return Target(level, rate)


def _read_schedule(value: Any) -> Schedule:
    try:
        return Schedule.read(value)
    except ValueError as error:
        raise EmotionError("emotion_schedule", f"emotion_schedule {error}") from None


_READERS: dict[str, Callable[[Any, Callable[[], str]], Any]] = {
    "emotion": _read_weights,
    "emotion_strength": lambda value, _: _read_number("emotion_strength", value, "a finite number, such as 1.0"),
    "emotion_scope": lambda value, _: _read_scope(value),
    "emotion_method": lambda value, _: _read_choice("emotion_method", value, METHODS),
    "emotion_schedule": lambda value, _: _read_schedule(value),
    "emotion_mute": lambda value, _: _read_mute(value),
    "emotion_target": lambda value, _: _read_target(value),
    "emotion_readout": lambda value, _: _read_choice("emotion_readout", value, DETAILS),
}


def accepted_by(circuit: CircuitSpec) -> str:
    return f"this circuit has {', '.join(spec.name for spec in circuit.emotions)}"


def short(value: Any) -> str:
    """A client's value as an error message may repeat it: what it is, and no more than 60 characters of it."""
    text = value if isinstance(value, str) else type(value).__name__ if isinstance(value, list | dict) else str(value)
    return repr(text[:60] + "..." if len(text) > 60 else text)
