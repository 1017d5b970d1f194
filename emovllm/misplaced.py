"""Fields of a request that are meant for an emotion and would be ignored: misspelt, or in another's object."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from emovllm.errors import EmotionError
from emovllm.fields import FIELDS
from emovllm.values import short

# Objects that clients put fields into, and that no server takes a field from.
NESTS = ("extra_body", "custom_params", "metadata")
# Of objects within objects, how many are looked through for emotion fields.
_DEPTH = 4
# How alike two names are, of 1, for one to be taken for the other misspelt.
_CLOSE = 0.85


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
