"""Which strength an emotion is best served at: the choice, apart from how its figures were measured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

# To try in a calibration.
LAMBDAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
# To evaluate, of the recommended ones.
USUAL_STRENGTHS = (0.75, 1.0)
# Of the median perplexity given the instruction, over the prompted reply's.
MOST_FLUENCY = 2.0
# The share of replies from which on an emotion counts as there: at a strength; asked for, beside being above chance.
ENOUGH = 0.5
# Of the mean share of repeated 3-grams, beyond that of prompted or of plain replies, whichever repeat more.
MORE_REPETITION = 0.05
# Past the collapse: half of the replies repetitive, or a median fluency of twice its bound (of a bound of 2, where
# single replies count as explosive).
COLLAPSED = 0.5
BEYOND_FLUENCY = 2.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """looser: bounds of fluency, growing, that are tried in turn for an emotion that shows in too few of the replies
    within the last one."""

    fluency: float = MOST_FLUENCY
    repetition: float = MORE_REPETITION
    looser: tuple[float, ...] = ()

    def in_turn(self) -> list[Bounds]:
        return [replace(self, fluency=fluency, looser=()) for fluency in (self.fluency, *self.looser)]


@dataclass(frozen=True, slots=True)
class Point:
    """One emotion's replies at one strength (a lambda of the circuit)."""

    strength: float
    accuracy: float
    fluency: float  # median
    repetition: float  # mean
    repetitive: float  # share of the replies

    def within(self, unsteered: float, bounds: Bounds) -> bool:
        """unsteered: the repetition of replies that nothing was injected into."""
        return self.fluency <= bounds.fluency and self.repetition <= unsteered + bounds.repetition

    def collapsed(self, bounds: Bounds) -> bool:
        return self.repetitive >= COLLAPSED or self.fluency > BEYOND_FLUENCY * bounds.fluency


@dataclass(frozen=True, slots=True)
class Choice:
    """recommended: the point to serve at, None where no strength keeps within the bounds. maximal: the largest strength
    before collapse, among those tried."""

    recommended: Point | None
    maximal: float


def choose(points: Sequence[Point], unsteered: float, bounds: Bounds, false_positives: float = 0.0) -> Choice:
    """The most accurate strength within the bounds before the first collapse, the smaller of equals; and the last one
    before that collapse, which bounds may be too loose to notice: those of a model whose prompted replies are loops.

    Of bounds that are tried in turn, the tightest within which the emotion shows in `ENOUGH` of the replies; where
    there is none such, the tightest that recommends anything.

    points: of one emotion and scope, at least one. unsteered: the repetition of replies that nothing was injected into,
    prompted ones or plain ones, whichever repeat more. false_positives: the share of plain replies that the judge takes
    for the emotion, which a strength must exceed to be recommended.
    """
    choices = [_choose(points, unsteered, each, false_positives) for each in bounds.in_turn()]
    found = [(choice, choice.recommended.accuracy) for choice in choices if choice.recommended is not None]
    enough = (choice for choice, accuracy in found if accuracy >= ENOUGH)
    return next(enough, found[0][0] if found else choices[0])


def _choose(points: Sequence[Point], unsteered: float, bounds: Bounds, false_positives: float) -> Choice:
    by_strength = sorted(points, key=lambda point: point.strength)
    whole = list(itertools.takewhile(lambda point: not point.collapsed(bounds), by_strength))
    felt = [point for point in whole if point.accuracy > false_positives]
    allowed = [point for point in felt if point.within(unsteered, bounds)]
    # max() takes the first of equals.
    recommended = max(allowed, key=lambda point: point.accuracy, default=None)
    return Choice(recommended, whole[-1].strength if whole else by_strength[0].strength)


def best_scope(choices: Mapping[str, Mapping[str, Choice]]) -> str:
    """The scope (first key) whose recommended strengths are most accurate on average over the emotions; an emotion
    without one counts as 0. The first of equals."""

    def value(scope: str) -> float:
        found = [choice.recommended.accuracy if choice.recommended else 0.0 for choice in choices[scope].values()]
        return sum(found) / len(found)

    return max(choices, key=value)
