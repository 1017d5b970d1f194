"""What is asked of a model in an evaluation: every message by every method, under the same decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from emovllm.emotion import SCOPES
from emovllm.errors import EvaluationError
from emovllm.readout import Reading
from emovllm.spec import CircuitSpec
from emovllm_offline.data.messages import Message, messages_digest
from emovllm_offline.data.styles import Frame, Style
from emovllm_offline.evaluation.further import Further, check, strengths_of

NONE, PROMPTING, STEERING, CIRCUITS, BOTH = METHODS = (
    "none",
    "prompting",
    "steering",
    "circuits",
    "circuits+prompting",
)
# Those that a strength applies to.
WITH_STRENGTH = (STEERING, CIRCUITS, BOTH)
# Those that a scope and further fields apply to.
WITH_CIRCUIT = (CIRCUITS, BOTH)
# Those whose prompt asks for the emotion; the others have the neutral prompt.
INSTRUCTED = (PROMPTING, BOTH)
MAX_TOKENS = 100
# Greedy, and nothing that a model or a server has as its own default.
DECODING: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


# Of every request that is to have none: a server may have an emotion of its own for those that name none.
PLAIN: dict[str, Any] = {"emotion": "none"}


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says of itself. strengths: the largest `emotion_strength` of each emotion, by its name in requests:
    `anger`, or `a/anger` where several circuits have it. reading: what requests may ask to be read, and targets go by.
    spec: the circuit's, where that is here."""

    model: str
    circuit: str  # its digest
    strengths: dict[str, float]
    methods: tuple[str, ...]
    reading: Reading | None = None
    spec: CircuitSpec | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of it. further: fields of requests by the circuit methods, each a condition beside the plain
    strengths, by its name."""

    messages: Sequence[Message]
    style: Style
    methods: Sequence[str]
    strengths: Sequence[float]
    max_tokens: int
    scopes: Sequence[str] = ("",)
    further: Further = field(default_factory=dict)


class Key(NamedTuple):
    """What tells one reply of an evaluation from the others; emotion and strength are empty where none applies.

    scope: empty for the circuit's own. further: the name of a further condition's fields.
    """

    message: str
    method: str
    emotion: str = ""
    strength: float = 0.0
    scope: str = ""
    further: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """One reply to generate. group: the message's, or its id."""

    key: Key
    valence: str
    user: str
    frame: Frame
    fields: dict[str, Any] = field(default_factory=dict)  # the request's emotion fields; none: PLAIN
    group: str = ""


def plan(asked: Asked, served: Served) -> tuple[list[Task], list[str]]:
    """The tasks, and the emotions in the server's order. Raises: EvaluationError."""
    if unknown := [method for method in asked.methods if method not in METHODS]:
        raise EvaluationError(f"no method {', '.join(unknown)}: choose from {', '.join(METHODS)}")
    if odd := [scope for scope in asked.scopes if scope not in ("", *SCOPES)]:
        raise EvaluationError(f"no scope {', '.join(odd)}: choose from {', '.join(SCOPES)}")
    if not asked.messages:
        raise EvaluationError("there are no messages to evaluate on")
    emotions = list(served.strengths)
    if lacking := [name for name in emotions if plain_name(name) not in asked.style.emotions]:
        raise EvaluationError(
            f"the style {asked.style.name} has no prompt for {', '.join(lacking)}: give --prompt-style "
            "one that has, such as that of the discovery"
        )
    if STEERING in asked.methods and "steering" not in served.methods:
        raise EvaluationError(
            'the server was not started with steering (additional_config {"emovllm": {"steering": true}}): '
            "leave the method out"
        )
    if asked.further and not any(method in WITH_CIRCUIT for method in asked.methods):
        raise EvaluationError(f"further conditions are of the methods {' and '.join(WITH_CIRCUIT)}: name one of them")
    check(asked.further, emotions, asked.strengths, served.spec)
    planned = tasks(asked.messages, emotions, asked.style, asked.methods, asked.strengths, asked.scopes, asked.further)
    refuse_too_strong([task.key.strength for task in planned if task.key.method in WITH_CIRCUIT], served)
    if len({task.key for task in planned}) < len(planned):
        raise EvaluationError("a method, a strength or a message is named twice")
    return planned, emotions


def refuse_too_strong(strengths: Sequence[float], served: Served) -> None:
    """Raises: EvaluationError."""
    for name, most in served.strengths.items():
        if over := [f"{strength:g}" for strength in dict.fromkeys(strengths) if abs(strength) > most * (1 + 1e-9)]:
            raise EvaluationError(f"strength {', '.join(over)} is over the circuit's maximum for {name}, {most:g}")


def settings(
    asked: Asked, planned: Sequence[Task], served: Served, read_by: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What decides the replies, as evaluate.json holds it. It has no keys, URLs or places of files.

    read_by: what targets go by.
    """
    return {
        "circuit": served.circuit,
        "emotions": list(served.strengths),
        "methods": list(asked.methods),
        "strengths": list(asked.strengths),
        "scopes": list(asked.scopes),
        "messages": {"sha256": messages_digest(asked.messages), "count": len(asked.messages)},
        "style": {"name": asked.style.name, "sha256": asked.style.digest()},
        "decoding": {**DECODING, "max_tokens": asked.max_tokens},
        "requests": plan_digest(planned),
        **({"further": {name: dict(fields) for name, fields in asked.further.items()}} if asked.further else {}),
        **({"target": read_by} if read_by else {}),
    }


def tasks(
    messages: Sequence[Message],
    emotions: Sequence[str],
    style: Style,
    methods: Sequence[str],
    strengths: Sequence[float],
    scopes: Sequence[str] = ("",),
    further: Further | None = None,
) -> list[Task]:
    """Message by message, so that methods, emotions and strengths share every batch.

    strengths: of `emotion_strength`; of steering, 1.0 is the paper's. scopes, further: of the circuit methods.
    """
    return [
        task
        for at, message in enumerate(messages)
        for task in _of_message(at, message, emotions, style, methods, strengths, scopes, further or {})
    ]


def _of_message(
    at: int,
    message: Message,
    emotions: Sequence[str],
    style: Style,
    methods: Sequence[str],
    strengths: Sequence[float],
    scopes: Sequence[str],
    further: Further,
) -> Iterator[Task]:
    group = message.group or message.id
    if NONE in methods:
        yield Task(Key(message.id, NONE), message.valence, message.user, style.neutral, group=group)
    for emotion in emotions:
        instruction = style.frames(plain_name(emotion), at)[0].model_copy(update={"reply": None})
        for method in methods:
            if method == NONE:
                continue
            frame = instruction if method in INSTRUCTED else style.neutral
            for strength in strengths if method in WITH_STRENGTH else (0.0,):
                for scope in scopes if method in WITH_CIRCUIT else ("",):
                    key = Key(message.id, method, emotion, strength, scope)
                    yield Task(key, message.valence, message.user, frame, fields_of(key), group)
            for name, more in further.items() if method in WITH_CIRCUIT else ():
                for strength in strengths_of(more, strengths):
                    key = Key(message.id, method, emotion, strength, "", name)
                    yield Task(key, message.valence, message.user, frame, {**fields_of(key), **more}, group)


def plain_name(emotion: str) -> str:
    """An emotion's name among styles and judges, without the circuit's: `anger` of `a/anger`."""
    return emotion.rpartition("/")[2]


def fields_of(key: Key) -> dict[str, Any]:
    """The request's emotion fields."""
    if key.method not in WITH_STRENGTH:
        return {}
    fields: dict[str, Any] = {"emotion": key.emotion, "emotion_strength": key.strength}
    if key.method == STEERING:
        fields["emotion_method"] = "steering"
    if key.scope:
        fields["emotion_scope"] = key.scope
    return fields


def plan_digest(planned: Sequence[Task]) -> str:
    """Identifies all that is asked."""
    content = "\n".join(f"{task.key} {task.user!r} {task.frame.model_dump_json()} {task.fields}" for task in planned)
    return hashlib.sha256(content.encode()).hexdigest()
