"""What is said of one reply and of many, on cases made by hand."""

from __future__ import annotations

import pytest

from emovllm_offline.judges.text import distinct, longest_run, regime, script_leak, text_metrics


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
    assert regime(made.repetition, 1.0) == "repetitive"


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
    assert regime(0.0, 1.5) == "surgical"
    assert regime(0.29, None) == "surgical"
    assert regime(0.3, 0.5) == "repetitive"
    # Repetition makes a reply likely again: it is asked for first.
    assert regime(0.6, 9.0) == "repetitive"
    assert regime(0.1, 4.1) == "explosive"
