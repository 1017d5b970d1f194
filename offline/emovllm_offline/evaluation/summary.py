"""From scored replies to a summary: by method and strength, emotion, valence, each value with its interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from emovllm_offline.evaluation.scoring import Scored
from emovllm_offline.intervals import Estimate, bootstrap, wilson
from emovllm_offline.judges.text import REGIMES

ALL = "all"


class Condition(NamedTuple):
    """How replies were brought about."""

    method: str
    strength: float
    scope: str

    def __str__(self) -> str:
        strength = f" {self.strength:g}" if self.strength else ""
        return f"{self.method}{strength}{' ' + self.scope if self.scope else ''}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition's replies of one emotion and valence, or of `all`.

    accuracy: by judge: the share that the target matches; for unsteered replies the share of false positives.
    perplexity, fluency: medians of the ratios (`Scored`). capped, leak: shares. The others are means.
    """

    condition: Condition
    emotion: str
    valence: str
    replies: int
    accuracy: dict[str, Estimate | None]
    perplexity: Estimate | None
    fluency: Estimate | None
    relevance: Estimate | None
    repetition: Estimate | None
    run: Estimate | None
    distinct_1: Estimate | None
    distinct_2: Estimate | None
    words: Estimate | None
    capped: Estimate | None
    leak: Estimate | None
    regimes: dict[str, float]


def conditions(scored: Sequence[Scored]) -> list[Condition]:
    """In the order of the plan."""
    return list(dict.fromkeys(condition_of(reply) for reply in scored))


def condition_of(reply: Scored) -> Condition:
    return Condition(reply.key.method, reply.key.strength, reply.key.scope)


def summarise(scored: Sequence[Scored], emotions: Sequence[str], judges: Sequence[str], seed: int = 0) -> list[Cell]:
    """Every cell that has replies; an unsteered reply counts in each emotion, as a possible false positive."""
    valences = list(dict.fromkeys(reply.valence for reply in scored))
    by_condition: dict[Condition, list[Scored]] = {}
    for reply in scored:
        by_condition.setdefault(condition_of(reply), []).append(reply)
    cells = []
    for condition, of_condition in by_condition.items():
        for emotion in (ALL, *emotions):
            for valence in (ALL, *valences) if len(valences) > 1 else (ALL,):
                chosen = [
                    reply
                    for reply in of_condition
                    if valence in (ALL, reply.valence) and (emotion == ALL or reply.key.emotion in ("", emotion))
                ]
                if chosen:
                    cells.append(_cell(condition, emotion, valence, chosen, judges, seed))
    return cells


def find(cells: Sequence[Cell], condition: Condition, emotion: str = ALL, valence: str = ALL) -> Cell | None:
    for cell in cells:
        if (cell.condition, cell.emotion, cell.valence) == (condition, emotion, valence):
            return cell
    return None


def _cell(
    condition: Condition, emotion: str, valence: str, chosen: Sequence[Scored], judges: Sequence[str], seed: int
) -> Cell:
    def mean(values: Sequence[float | None]) -> Estimate | None:
        return bootstrap([value for value in values if value is not None], np.mean, seed)

    def median(values: Sequence[float | None]) -> Estimate | None:
        return bootstrap([value for value in values if value is not None], np.median, seed)

    def matches(judge: str) -> Iterator[bool]:
        for reply in chosen:
            for target, verdict in reply.verdicts[judge].items():
                if emotion in (ALL, target):
                    yield verdict.match

    accuracy = {judge: wilson(sum(hits := list(matches(judge))), len(hits)) for judge in judges}
    return Cell(
        condition,
        emotion,
        valence,
        replies=len(chosen),
        accuracy=accuracy,
        perplexity=median([reply.perplexity for reply in chosen]),
        fluency=median([reply.fluency for reply in chosen]),
        relevance=mean([reply.relevance for reply in chosen]),
        repetition=mean([reply.metrics.repetition for reply in chosen]),
        run=mean([reply.metrics.run for reply in chosen]),
        distinct_1=mean([reply.metrics.distinct_1 for reply in chosen]),
        distinct_2=mean([reply.metrics.distinct_2 for reply in chosen]),
        words=mean([reply.metrics.words for reply in chosen]),
        capped=wilson(sum(reply.capped for reply in chosen), len(chosen)),
        leak=wilson(sum(reply.metrics.leak for reply in chosen), len(chosen)),
        regimes={name: sum(reply.regime == name for reply in chosen) / len(chosen) for name in REGIMES},
    )
