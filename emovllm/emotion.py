"""What a request may ask for: `emotion`, its strength, scope and method, and what they resolve to.

A request's fields are read once, into `Options`; these and a circuit make an `Emotion`, whose `Wire` crosses to the
engine. Needs neither torch nor vLLM: the server, the engine and offline callers share it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import Field, TypeAdapter

from emovllm.errors import EmotionError
from emovllm.readout import DETAILS, Detail, Reading
from emovllm.schedule import Schedule
from emovllm.spec import CircuitSpec, Scope

Method = Literal["circuit", "steering"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
METHODS: tuple[Method, ...] = get_args(Method)
# Asks for the plain model, where the operator has set a default emotion.
NONE = "none"
# Where what is ours lies among what is others': in vLLM's `additional_config` and `extra_args`.
KEY = "emovllm"
# The largest strength of steering, whose 1.0 is the paper's: beyond, a model only stammers.
MAX_STEERING = 4.0

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
        Scope | None,
        Field(description="What is steered: the prompt's last token and the reply, the prompt's last alone, or all."),
    ] = None
    emotion_method: Annotated[
        Method | None,
        Field(description="The baseline `steering` is for evaluations: the engine must be started with it."),
    ] = None
    emotion_schedule: Annotated[
        dict[str, float] | list[tuple[int, float]] | None,
        Field(
            description="The share of the strength, 0 to 1, by token of the reply: held and then halved every "
            "half_life tokens, from one token to before another, or a line through points. Of the scope `generation`.",
            examples=[{"hold": 20, "half_life": 40}, {"from": 8, "to": 64}, [[0, 1], [50, 0.3]]],
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
    def schedule(self) -> Schedule | None:
        return None if self.emotion_schedule is None else Schedule.read(self.emotion_schedule)

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
        if self.emotion_schedule is not None and scope != "generation":
            message = f"emotion_schedule is of the reply's tokens: it needs the scope generation, not {scope}"
            raise EmotionError("emotion_schedule", message)
        return Emotion(weights, scope, self.method, self.schedule) if weights else None

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


FIELDS = tuple(field.name for field in dataclasses.fields(Options))


def json_schema() -> dict[str, Any]:
    """The JSON schema of each field."""
    properties: dict[str, Any] = TypeAdapter(Options).json_schema()["properties"]
    return properties


@dataclass(frozen=True, slots=True)
class Emotion:
    """A request's emotion, resolved against a circuit.

    `weights` are the lambdas of method section 8, (emotion, lambda) sorted by name, none of them 0. With the method
    `steering`, the baseline that evaluations compare with, they count in `emovllm.baseline.RATIO`.
    """

    weights: tuple[tuple[str, float], ...]
    scope: Scope
    method: Method = "circuit"
    schedule: Schedule | None = None

    def wire(self, circuit_digest: str) -> Wire:
        return Wire(circuit_digest, dict(self.weights), self.scope, self.method, schedule=self.schedule)


class Wire(NamedTuple):
    """An emotion on its way to engine and workers, in `SamplingParams.extra_args["emovllm"]`, as a list once it
    has crossed to another process.

    circuit: its digest. prompt_len: of the request's prompt, where that is shorter than vLLM's for it: each step of a
    beam is a request whose prompt holds generated tokens. reading: what is read for the request, if it asked.
    """

    circuit: str
    weights: dict[str, float]
    scope: Scope
    method: Method = "circuit"
    prompt_len: int | None = None
    reading: Reading | None = None
    schedule: Schedule | None = None

    @classmethod
    def of(cls, params: Any) -> Wire | None:
        """The resolved emotion of a request's sampling parameters, or None."""
        wire = cls._in(params)
        return wire if wire is not None and wire.weights else None

    @classmethod
    def reading_of(cls, params: Any) -> Reading | None:
        """What is read for a request, by its sampling parameters, or None."""
        wire = cls._in(params)
        return wire.reading if wire is not None else None

    @classmethod
    def _in(cls, params: Any) -> Wire | None:
        value = (params.extra_args or {}).get(KEY) if params is not None else None
        if value is None or isinstance(value, cls):
            return value
        wire = cls(*value)
        return wire._replace(schedule=Schedule.carried(wire.schedule))

    def prompt_length(self, prompt_len: int) -> int:
        """The length of the request's prompt, which vLLM takes for `prompt_len`."""
        return prompt_len if self.prompt_len is None else self.prompt_len

    def cache_key(self) -> str:
        """A stable text for the prefix cache: equal exactly when the injected vectors and positions are."""
        scheduled = [] if self.schedule is None else [self.schedule.body()]
        return json.dumps([self.circuit, sorted(self.weights.items()), self.scope, self.method, *scheduled])

    def __deepcopy__(self, memo: Any) -> Wire:
        # Nobody changes one, and vLLM copies each request's parameters.
        return self


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


def _read_schedule(value: Any) -> Any:
    try:
        return Schedule.read(value).body()
    except ValueError as error:
        raise EmotionError("emotion_schedule", f"emotion_schedule {error}") from None


_READERS: dict[str, Callable[[Any, Callable[[], str]], Any]] = {
    "emotion": _read_weights,
    "emotion_strength": lambda value, _: _read_number("emotion_strength", value, "a finite number, such as 1.0"),
    "emotion_scope": lambda value, _: _read_choice("emotion_scope", value, SCOPES),
    "emotion_method": lambda value, _: _read_choice("emotion_method", value, METHODS),
    "emotion_schedule": lambda value, _: _read_schedule(value),
    "emotion_readout": lambda value, _: _read_choice("emotion_readout", value, DETAILS),
}


def accepted_by(circuit: CircuitSpec) -> str:
    return f"this circuit has {', '.join(spec.name for spec in circuit.emotions)}"


def short(value: Any) -> str:
    """A client's value as an error message may repeat it: what it is, and no more than 60 characters of it."""
    text = value if isinstance(value, str) else type(value).__name__ if isinstance(value, list | dict) else str(value)
    return repr(text[:60] + "..." if len(text) > 60 else text)
