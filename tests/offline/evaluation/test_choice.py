"""Calibration's choice on frontiers made by hand, and what it writes into a circuit."""

from __future__ import annotations

from emovllm_offline.evaluation.choice import Bounds, Choice, Point, best_scope, choose


def point(
    strength: float, accuracy: float, fluency: float = 1.0, repetition: float = 0.0, repetitive: float = 0.0
) -> Point:
    return Point(strength, accuracy, fluency, repetition, repetitive)


def test_the_most_accurate_strength_within_the_bounds_is_recommended() -> None:
    frontier = [point(0.5, 0.4), point(1, 0.8, 1.5), point(1.5, 0.95, 1.9), point(2, 1.0, 2.1), point(3, 1.0, 9.0)]
    chosen = choose(frontier, 0.0, Bounds())
    assert chosen.recommended == frontier[2]


def test_of_equals_the_smaller_strength_is_recommended_in_any_order() -> None:
    frontier = [point(2, 0.9), point(1, 0.9), point(1.5, 0.9)]
    assert choose(frontier, 0.0, Bounds()).recommended == frontier[1]


def test_repetition_is_bounded_beside_that_of_prompted_replies() -> None:
    frontier = [point(1, 0.5, repetition=0.05), point(2, 0.9, repetition=0.12)]
    assert choose(frontier, 0.0, Bounds()).recommended == frontier[0]
    assert choose(frontier, 0.08, Bounds()).recommended == frontier[1]


def test_the_maximum_is_the_last_strength_before_the_first_collapse() -> None:
    frontier = [
        point(1, 0.5),
        point(2, 0.9, 1.8),
        point(3, 0.9, 3.0, repetitive=0.4),
        point(4, 0.9, 9.0),
        point(5, 0.9, 3.0),
    ]
    chosen = choose(frontier, 0.0, Bounds())
    assert chosen.recommended == frontier[1]
    assert chosen.maximal == 3
    assert choose(frontier[:3], 0.0, Bounds()).maximal == 3
    assert choose(frontier, 0.0, Bounds(fluency=5.0)).maximal == 5
    loops = [point(1, 0.5), point(2, 0.4, repetitive=0.5), point(3, 0.4)]
    assert choose(loops, 0.0, Bounds(fluency=5.0)).maximal == 1


def test_a_looser_bound_is_for_an_emotion_that_shows_in_too_few_replies_within_a_tighter_one() -> None:
    bounds = Bounds(looser=(4.0, 10.0))
    frontier = [point(0.5, 0.2), point(1, 0.6, 1.9), point(1.5, 0.9, 2.5), point(2, 1.0, 6.0)]
    assert choose(frontier, 0.0, bounds).recommended == frontier[1]
    late = [point(0.5, 0.2), point(1, 0.4, 1.9), point(1.5, 0.5, 2.5), point(2, 1.0, 6.0)]
    assert choose(late, 0.0, bounds) == Choice(late[2], 2)
    assert choose(late, 0.0, Bounds()) == Choice(late[1], 1.5)
    # Where it never shows in half of them, more costs more and does not do.
    never = [point(1, 0.3, 1.9), point(2, 0.4, 6.0)]
    assert choose(never, 0.0, bounds).recommended == never[0]
    # Unless the tightest bound leaves nothing.
    assert choose(never[1:], 0.0, bounds).recommended == never[1]
    assert choose(never, 0.0, Bounds(0.5, looser=(0.6,))) == Choice(None, 1)


def test_nothing_is_recommended_where_nothing_keeps_within_the_bounds() -> None:
    chosen = choose([point(1, 0.9, 5.0, repetitive=0.1), point(2, 1.0, 9.0, repetitive=0.0)], 0.0, Bounds())
    assert chosen == Choice(None, 1)


def test_nothing_is_recommended_from_the_first_collapse_on() -> None:
    # Prompted replies that are loops bound repetition too loosely to notice.
    loops = [point(3, 1.0, repetition=0.7, repetitive=0.9), point(4, 1.0, repetition=0.3, repetitive=0.2)]
    frontier = [point(1, 0.5), point(2, 0.8, repetition=0.2, repetitive=0.3), *loops]
    assert choose(frontier, 0.66, Bounds()) == Choice(frontier[1], 2)
    assert choose(loops, 0.66, Bounds()) == Choice(None, 3)


def test_the_scope_with_the_most_accurate_choices_wins_and_a_missing_choice_counts_as_nothing() -> None:
    weak, strong, none = Choice(point(1, 0.5), 1), Choice(point(1, 0.9), 1), Choice(None, 1)
    assert best_scope({"generation": {"anger": weak}, "all": {"anger": strong}}) == "all"
    assert best_scope({"generation": {"anger": weak}, "all": {"anger": weak}}) == "generation"
    assert best_scope({"a": {"anger": strong, "fear": none}, "b": {"anger": weak, "fear": weak}}) == "b"


def test_an_accuracy_that_false_positives_explain_is_no_recommendation() -> None:
    frontier = [point(1, 0.2), point(2, 0.3)]
    assert choose(frontier, 0.0, Bounds(), 0.3).recommended is None
    assert choose(frontier, 0.0, Bounds(), 0.2).recommended == frontier[1]
    assert choose([point(1, 0.0)], 0.0, Bounds()).recommended is None
