"""What a request may ask for: `emotion`, its strength, scope and method, and how it goes on in time.

A request's fields are read once, into `Options`; these and a circuit make an `Emotion`. Needs neither torch nor vLLM:
the server, the engine and offline callers share it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, WithJsonSchema

from emovllm.emotion import ANSWER, NONE, Emotion, Method, Target
from emovllm.errors import EmotionError
from emovllm.phases import Phase
from emovllm.readout import Detail
from emovllm.schedule import Schedule
from emovllm.spec import CircuitSpec
from emovllm.styles import PromptStyle
from emovllm.values import READERS, SCOPE, Mute, short

# The largest strength of steering, whose 1.0 is the paper's: beyond, a model only stammers.
MAX_STEERING = 4.0
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
        WithJsonSchema({"anyOf": [{"type": "string", "pattern": SCOPE}, {"type": "null"}]}),
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
            "half_life tokens, from one token to before another, or a line through points.",
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
    emotion_from: Annotated[
        int | None,
        Field(
            description="How many tokens of the prompt are its context: the others are scored and steered as a reply "
            "to them would be. Negative counts from the end: -5 has the last five for the reply.",
            examples=[24, -5],
        ),
    ] = None
    emotion_prompt: Annotated[
        bool | PromptStyle | None,
        Field(
            description="Puts the emotion's instruction into the system turn too: of the style that the circuit was "
            "discovered with (`true`), or of another. Of chats and responses.",
            examples=[True, "paper"],
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
        read = {name: READERS[name](value, accepted) for name, value in given.items()}
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
        self._check_from(scope, bool(muted))
        start = self.emotion_from
        return Emotion(weights, scope, self.method, self.emotion_schedule, muted, target, start) if weights else None

    def _check_from(self, scope: str, muted: bool) -> None:
        """Raises: EmotionError where the rest of a prompt cannot be steered as the reply that it stands for would."""
        if self.emotion_from is None:
            return
        if scope == "all":
            message = "emotion_from has no meaning with the scope all, which begins at the prompt's first token"
        elif muted:
            message = "emotion_from cannot be combined with emotion_mute or the scope answer: the prompt is not parsed"
        elif self.emotion_target is not None:
            message = "emotion_from cannot be combined with emotion_target, which follows what is read token by token"
        else:
            return
        raise EmotionError("emotion_from", message)

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


def accepted_by(circuit: CircuitSpec) -> str:
    return f"this circuit has {', '.join(spec.name for spec in circuit.emotions)}"
