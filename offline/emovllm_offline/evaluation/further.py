"""Further conditions of an evaluation: request fields of the circuit methods, beside the plain strengths."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from emovllm.emotion import SCOPES
from emovllm.errors import EmotionError, EvaluationError
from emovllm.fields import FIELDS, Options
from emovllm.spec import CircuitSpec

# A condition's fields by its name, as requests have them.
Further = Mapping[str, Mapping[str, Any]]
STRENGTH, TARGET = "emotion_strength", "emotion_target"
# Which emotion, by what method, and whether it is read, is the evaluation's.
ALLOWED = tuple(name for name in FIELDS if name not in ("emotion", "emotion_method", "emotion_readout"))


def read_further(words: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Of `NAME={"field": value}` each. Raises: EvaluationError."""
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip()
        try:
            fields = json.loads(text) if equals else None
        except ValueError:
            fields = None
        if not name or not isinstance(fields, dict):
            raise EvaluationError(
                f"--with {word[:60]}: expected NAME and the fields of a request in JSON, such as "
                """fading='{"emotion_schedule": {"hold": 20, "half_life": 40}}'"""
            )
        if name in found:
            raise EvaluationError(f"--with {name} is given twice")
        found[name] = fields
    return found


def strengths_of(fields: Mapping[str, Any], strengths: Sequence[float]) -> Sequence[float]:
    """Those that a condition is asked at: its own, where it has one."""
    return (fields[STRENGTH],) if STRENGTH in fields else strengths


def has_target(further: Further) -> bool:
    """Whether the engine needs something to read with."""
    return any(TARGET in fields for fields in further.values())


def check(further: Further, emotions: Iterable[str], strengths: Sequence[float], spec: CircuitSpec | None) -> None:
    """Raises: EvaluationError where a condition is none that could be asked for.

    spec: the circuit's, where it is here: against it, what goes together is checked too.
    """
    for name, fields in further.items():
        if not name.strip() or name in SCOPES:
            raise EvaluationError(f"a further condition needs a name of its own, not {name!r}")
        if not fields or (odd := [field for field in fields if field not in ALLOWED]):
            said = f"{', '.join(odd)} is not for it to say" if fields else "it has no fields"
            raise EvaluationError(f"further condition {name}: {said}: choose from {', '.join(ALLOWED)}")
        for emotion in emotions:
            for strength in strengths_of(fields, strengths):
                try:
                    options = Options.read({"emotion": emotion, STRENGTH: strength, **fields})
                    if spec is not None:
                        options.of(spec)
                except EmotionError as error:
                    raise EvaluationError(f"further condition {name}: {error}") from None
