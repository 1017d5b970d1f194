"""What the values of a request's fields must be, each by itself; what they mean together is for `emovllm.fields`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from emovllm.emotion import ANSWER, MAX_TAIL, METHODS, SCOPES, TAIL, Target
from emovllm.errors import EmotionError
from emovllm.readout import DETAILS
from emovllm.schedule import Schedule
from emovllm.styles import PROMPTS

# What of a reply can be spared.
Mute = Literal["tools", "guided"]
MUTES: tuple[Mute, ...] = get_args(Mute)
# How fast a strength follows what is read, by token.
DEFAULT_RATE = 0.5
MAX_RATE = 100.0
# More than any prompt has.
MAX_TOKENS = 2**31 - 1

SCOPE = rf"^(?:{'|'.join(SCOPES)}|{ANSWER}|{TAIL}[1-9][0-9]{{0,2}})$"


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
    if not isinstance(value, str) or not re.fullmatch(SCOPE, value):
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


def _read_from(value: Any) -> int:
    number = _read_number("emotion_from", value, "a number of tokens: the prompt's first ones, or -5 for all but five")
    if not number.is_integer() or number == 0 or abs(number) > MAX_TOKENS:
        message = f"emotion_from must be a whole number of tokens other than 0, got {short(value)}"
        raise EmotionError("emotion_from", message)
    return int(number)


def _read_prompt(value: Any) -> str | bool | None:
    if value is False:
        return None
    if value is not True and (not isinstance(value, str) or value not in PROMPTS):
        message = f"emotion_prompt must be true, or a style: {', '.join(PROMPTS)}; got {short(value)}"
        raise EmotionError("emotion_prompt", message)
    return value


def _read_schedule(value: Any) -> Schedule:
    try:
        return Schedule.read(value)
    except ValueError as error:
        raise EmotionError("emotion_schedule", f"emotion_schedule {error}") from None


READERS: dict[str, Callable[[Any, Callable[[], str]], Any]] = {
    "emotion": _read_weights,
    "emotion_strength": lambda value, _: _read_number("emotion_strength", value, "a finite number, such as 1.0"),
    "emotion_scope": lambda value, _: _read_scope(value),
    "emotion_method": lambda value, _: _read_choice("emotion_method", value, METHODS),
    "emotion_schedule": lambda value, _: _read_schedule(value),
    "emotion_mute": lambda value, _: _read_mute(value),
    "emotion_target": lambda value, _: _read_target(value),
    "emotion_from": lambda value, _: _read_from(value),
    "emotion_prompt": lambda value, _: _read_prompt(value),
    "emotion_readout": lambda value, _: _read_choice("emotion_readout", value, DETAILS),
}


def short(value: Any) -> str:
    """A client's value as an error message may repeat it: what it is, and no more than 60 characters of it."""
    text = value if isinstance(value, str) else type(value).__name__ if isinstance(value, list | dict) else str(value)
    return repr(text[:60] + "..." if len(text) > 60 else text)
