"""What is asked of a model in an evaluation: every message by every method, under the same decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from emovllm_offline.data.messages import Message
from emovllm_offline.data.styles import Frame, Style

NONE, PROMPTING, STEERING, CIRCUITS, BOTH = METHODS = (
    "none",
    "prompting",
    "steering",
    "circuits",
    "circuits+prompting",
)
# Those that a strength applies to.
WITH_STRENGTH = (STEERING, CIRCUITS, BOTH)
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


class Key(NamedTuple):
    """What tells one reply of an evaluation from the others; emotion and strength are empty where none applies.

    scope: empty for the circuit's own.
    """

    message: str
    method: str
    emotion: str = ""
    strength: float = 0.0
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """One reply to generate."""

    key: Key
    valence: str
    user: str
    frame: Frame
    fields: dict[str, Any] = field(default_factory=dict)  # the request's emotion fields; none: PLAIN


def tasks(
    messages: Sequence[Message],
    emotions: Sequence[str],
    style: Style,
    methods: Sequence[str],
    strengths: Sequence[float],
    scopes: Sequence[str] = ("",),
) -> list[Task]:
    """Message by message, so that methods, emotions and strengths share every batch.

    strengths: of `emotion_strength`; of steering, 1.0 is the paper's. scopes: of the circuit methods.
    """
    return [
        task
        for at, message in enumerate(messages)
        for task in _of_message(at, message, emotions, style, methods, strengths, scopes)
    ]


def _of_message(
    at: int,
    message: Message,
    emotions: Sequence[str],
    style: Style,
    methods: Sequence[str],
    strengths: Sequence[float],
    scopes: Sequence[str],
) -> Iterator[Task]:
    if NONE in methods:
        yield Task(Key(message.id, NONE), message.valence, message.user, style.neutral)
    for emotion in emotions:
        instruction = style.frames(plain_name(emotion), at)[0].model_copy(update={"reply": None})
        for method in methods:
            if method == NONE:
                continue
            frame = instruction if method in INSTRUCTED else style.neutral
            for strength in strengths if method in WITH_STRENGTH else (0.0,):
                for scope in scopes if method in (CIRCUITS, BOTH) else ("",):
                    key = Key(message.id, method, emotion, strength, scope)
                    yield Task(key, message.valence, message.user, frame, _fields(key))


def plain_name(emotion: str) -> str:
    """An emotion's name among styles and judges, without the circuit's: `anger` of `a/anger`."""
    return emotion.rpartition("/")[2]


def _fields(key: Key) -> dict[str, Any]:
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
