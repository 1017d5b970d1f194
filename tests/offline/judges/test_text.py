"""What is said of one reply and of many, on cases made by hand."""

from __future__ import annotations

import pytest

from emovllm_offline.data.examples import load_examples
from emovllm_offline.judges.text import (
    distinct,
    longest_run,
    opening,
    openings,
    refuses,
    regime,
    script_leak,
    text_metrics,
)


def test_distinct_counts_different_grams_over_all() -> None:
    words = ["the", "dog", "saw", "the", "dog"]
    assert distinct(words, 1) == pytest.approx(3 / 5)
    assert distinct(words, 2) == pytest.approx(3 / 4)
    assert distinct(words, 3) == 1
    assert distinct([], 1) == 1
    assert distinct(["one"], 2) == 1


def test_repetition_is_the_share_of_token_trigrams_that_came_before() -> None:
    assert text_metrics("", [1, 2, 3, 4]).repetition == 0
    # Eight trigrams, of six kinds.
    assert text_metrics("", [1, 2, 3, 1, 2, 3, 9, 1, 2, 3]).repetition == pytest.approx(2 / 8)
    assert text_metrics("", [7] * 6).repetition == pytest.approx(3 / 4)
    assert text_metrics("", [1, 1]).repetition == text_metrics("", []).repetition == 0


def test_a_collapse_without_words_is_seen() -> None:
    made = text_metrics("F. (Happy ( ( ( ( ( (", [5, 6, 7, 8, *[9] * 90])
    assert made.words == 2
    assert made.run == 90
    assert regime("", made.repetition, 1.0) == "repetitive"


@pytest.mark.parametrize(
    ("text", "run"),
    [
        ("", 0),
        ("a quiet day", 0),
        ("no no", 2),
        ("well no no no then", 3),
        # One phrase two and a half times.
        ("oh i am sad i am sad i am", 8),
        # The same words, but never right after one another.
        ("i am sad but i am sad", 0),
        ("a b a c a b a c", 8),
    ],
)
def test_the_longest_run_is_of_one_phrase_repeated_at_once(text: str, run: int) -> None:
    assert longest_run(text.split()) == run


def test_words_are_letters_and_their_apostrophes() -> None:
    measured = text_metrics("It\u2019s 3 o'clock: don't, DON'T!", [])
    assert measured.words == 4
    assert measured.distinct_1 == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("naïve café, 5 º and €: it's fine! \U0001f600", False),
        ("\uff46\uff55\uff4c\uff4c width", False),
        ("I am 生气", True),
        ("privet, привет", True),
        ("αβγ", True),
        ("", False),
    ],
)
def test_a_letter_of_another_script_is_a_leak(text: str, leaks: bool) -> None:
    assert script_leak(text) == leaks


def test_regimes() -> None:
    assert regime("Good.", 0.0, 1.5) == "surgical"
    assert regime("Good.", 0.29, None) == "surgical"
    assert regime("Good.", 0.3, 0.5) == "repetitive"
    # Repetition makes a reply likely again: it is asked for first.
    assert regime("Good.", 0.6, 9.0) == "repetitive"
    assert regime("Good.", 0.1, 4.1) == "explosive"
    # So does a refusal, and whatever else is the matter, it is one.
    assert regime("I'm sorry, but I can't assist with that. " * 5, 0.8, 0.2) == "refusing"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I\u2019m sorry, but I cannot help you with this request.",
        "As an AI language model, I don't have feelings, but I can tell you about buses.",
        "Sorry, I am unable to provide such content.",
        "I'm just an AI, so I don't get angry.",
        "I'm not able to discuss that. Is there something else?",
    ],
)
def test_refusals_are_found(text: str) -> None:
    assert refuses(text)


def test_what_is_felt_is_no_refusal() -> None:
    emotional = [reply for example in load_examples() for reply in example.replies.values()]
    emotional += ["I'm sorry, but I can't believe it!", "I cannot stand this!", "I can't help crying.", ""]
    assert [text for text in emotional if refuses(text)] == []
    # Nor what is said much later.
    assert not refuses("The bus is late again. " * 20 + "I can't assist with that.")


def test_replies_begin_alike_by_their_words() -> None:
    assert opening("Oh no, I\u2019m lost!") == opening("OH NO: I'm found.") == ("oh", "no", "i'm")
    assert opening("Well.") == ("well",)
    assert opening("...") == ()


def test_replies_that_begin_alike_count_once_in_each_emotion() -> None:
    assert openings([("anger", "Oh no, not I."), ("anger", "Oh no! Not you!"), ("fear", "Oh no, not I.")]) == 2 / 3
