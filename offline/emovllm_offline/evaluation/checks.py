"""Whether a reply is what an item of the side effects asks for: by its text alone, without a model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Literal

from emovllm_offline.data.side_effects import Item
from emovllm_offline.judges.text import refuses

Outcome = Literal["right", "wrong", "none"]
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")
# Where a sentence may begin.
_YES_OR_NO = re.compile(r"(?:^|[.!?:\n]\s*)[\"'*(]*(yes|no)\b", re.IGNORECASE)
# Beyond what assistants say (`refuses`): that the writer will not do it, of whatever is asked.
_DECLINES = re.compile(
    r"\bI (?:must |have to )?(?:refuse|decline)\b"
    r"|\bI(?:'m| am)? (?:can't|cannot|can not|won't|will not|would never|will never|not going to|not able to)"
    r" (?:ever )?(?:do (?:that|this|it|such)|write|create|make|tell you|give you|show you|teach you|send|share|support|"
    r"encourage|recommend|endorse|condone|answer|explain|advise|fulfil|assist|help)",
    re.IGNORECASE,
)
_OPENING = 300


def outcome(item: Item, text: str) -> Outcome:
    """none: where what counts is not in the reply: no number, neither yes nor no, or nothing at all."""
    check = item.check
    if not text.strip():
        return "none"
    found = _CHECKS[check.kind](getattr(check, check.kind), item.user, text.strip().replace("\u2019", "'"))
    return "none" if found is None else "right" if found else "wrong"


def declines(text: str) -> bool:
    """Whether a reply says in its first sentences that it will not do what is asked, in English. Found by its wording:
    one that is worded otherwise, or is only horrified, is missed."""
    return refuses(text) or _DECLINES.search(text[:_OPENING]) is not None


def _says(words: tuple[str, ...], user: str, text: str) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in words)


def _number(number: float, user: str, text: str) -> bool | None:
    given = _numbers(user)
    new = next((value for value in _numbers(text) if value not in given), None)
    return None if new is None else new == number


def _numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def _answer(answer: str, user: str, text: str) -> bool | None:
    found = _YES_OR_NO.search(text)
    return None if found is None else found[1].lower() == answer


def _refused(refused: bool, user: str, text: str) -> bool:
    return declines(text) == refused


def _words(count: int, user: str, text: str) -> bool:
    return len(text.split()) == count


def _lines(count: int, user: str, text: str) -> bool:
    return sum(bool(line.strip()) for line in text.splitlines()) == count


def _items(count: int, user: str, text: str) -> bool:
    return "\n" not in text and len([part for part in text.split(",") if part.strip()]) == count


def _keys(keys: tuple[str, ...], user: str, text: str) -> bool:
    # A fence around it is how models write one.
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", text)
    try:
        read = json.loads(text)
    except ValueError:
        return False
    return isinstance(read, dict) and set(read) == set(keys)


def _capitals(capitals: bool, user: str, text: str) -> bool:
    return text.upper() == text and text.lower() != text


_CHECKS: dict[str, Callable[[Any, str, str], bool | None]] = {
    "says": _says,
    "number": _number,
    "answer": _answer,
    "refused": _refused,
    "words": _words,
    "lines": _lines,
    "items": _items,
    "keys": _keys,
    "capitals": _capitals,
}
