"""What can be said of one reply without a model: variety, repetition, length, script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# A word: letters of any script, with apostrophes inside.
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
# Latin letters and their accents end here; below are also signs that count as letters, such as the ordinals.
_LATIN_END = 0x24F
# The longest phrase whose immediate repeats are looked for, in tokens.
LONGEST_PHRASE = 40
# Of a reply: the share of its token 3-grams that occurred before in it, from which on it is a repetitive collapse. Two
# ordinary sentences have 0 to 0.1.
REPETITIVE = 0.3
# Of a reply: its perplexity over the prompted reply's, given the emotion instruction, above which it is an explosive
# collapse. Both are fluent below about 2; single replies scatter, hence the room.
EXPLOSIVE = 4.0
SURGICAL, REPETITION, EXPLOSION, REFUSAL = REGIMES = ("surgical", "repetitive", "explosive", "refusing")
# What a model says in place of a reply: that it will not or cannot give one, or what it is.
_REFUSAL = re.compile(
    r"\bI(?: am|'m)? (?:can't|cannot|can not|won't|will not|am unable to|am not able to|unable to|not able to|"
    r"am not programmed to|do not|don't)"
    r" (?:be able to )?(?:assist|help (?:you )?with|comply|fulfil|engage|participate|respond to|provide|discuss|"
    r"generate|continue with|feel (?:emotions|feelings)|have (?:feelings|emotions|personal))"
    r"|\bI(?: am|'m) (?:just |only |merely )?an? (?:AI|artificial intelligence|language model|large language model)\b"
    r"|\bas an? (?:AI|artificial intelligence|language model|large language model)\b",
    re.IGNORECASE,
)
# Characters in which a refusal has begun.
_OPENING = 200


def batches_by_length(texts: Sequence[str], size: int) -> Iterator[list[int]]:
    """The places of all texts, up to `size` at a time; those of similar length together, which takes little padding."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@dataclass(frozen=True, slots=True)
class TextMetrics:
    """distinct_1, distinct_2: different word n-grams over all (1 for a text too short to have any); repetition: the
    share of token 3-grams that occurred before; run: tokens in the longest stretch that repeats one phrase over and
    over, the phrase's first time included (0 for none).

    A collapse may have no words at all ("( ( ( (", "titititi"): repetition and run count tokens.
    """

    words: int
    distinct_1: float
    distinct_2: float
    repetition: float
    run: int
    leak: bool


def text_metrics(text: str, tokens: Sequence[int]) -> TextMetrics:
    """Of a reply; tokens: its token ids."""
    words = _WORD.findall(text.lower().replace("\u2019", "'"))
    return TextMetrics(
        len(words),
        distinct(words, 1),
        distinct(words, 2),
        1 - distinct(tokens, 3),
        longest_run(tokens),
        script_leak(text),
    )


def distinct(units: Sequence[Any], n: int) -> float:
    """Different n-grams over all n-grams; 1 where there are none."""
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def longest_run(units: Sequence[Any]) -> int:
    """Units in the longest stretch made of one phrase repeated right after itself, at least twice whole."""
    longest = 0
    for period in range(1, min(LONGEST_PHRASE, len(units) // 2) + 1):
        same = 0
        for i in range(period, len(units)):
            same = same + 1 if units[i] == units[i - period] else 0
            if same >= period:
                longest = max(longest, same + period)
    return longest


def script_leak(text: str) -> bool:
    """Whether a text has a letter that is not Latin."""
    return any(char.isalpha() and ord(char) > _LATIN_END and "LATIN" not in unicodedata.name(char, "") for char in text)


def refuses(text: str) -> bool:
    """Whether a reply begins by refusing to give one, in English, as assistants do ("I'm sorry, but I can't assist
    with that."). Found by its wording: one that is worded otherwise is missed."""
    return _REFUSAL.search(text[:_OPENING].replace("\u2019", "'")) is not None


def opening(text: str, words: int = 3) -> tuple[str, ...]:
    """A reply's first words, in small letters."""
    return tuple(_WORD.findall(text.lower().replace("\u2019", "'"))[:words])


def openings(replies: Sequence[tuple[str, str]]) -> float:
    """Of replies, each with its emotion: how many different openings those of an emotion have, over the replies: 1
    where no two begin alike. There is at least one reply."""
    return len({(emotion, opening(text)) for emotion, text in replies}) / len(replies)


def regime(text: str, repetition: float, fluency: float | None) -> str:
    """The state of one steered reply; fluency: its perplexity ratio given the instruction, where it is known."""
    if refuses(text):
        return REFUSAL
    if repetition >= REPETITIVE:
        return REPETITION
    return EXPLOSION if fluency is not None and fluency > EXPLOSIVE else SURGICAL
