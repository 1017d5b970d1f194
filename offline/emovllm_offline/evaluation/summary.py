"""From scored replies to a summary: by method and strength, emotion, valence, each value with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from emovllm_offline.evaluation.scoring import Scored
from emovllm_offline.intervals import Estimate, by_group
from emovllm_offline.judges.judge import Verdict
from emovllm_offline.judges.text import REGIMES, openings

ALL = "all"


class Condition(NamedTuple):
    """How replies were brought about."""

    method: str
    strength: float
    scope: str
    further: str = ""  # the name of further fields

    def __str__(self) -> str:
        strength = f"{self.strength:g}" if self.strength else ""
        return " ".join(filter(None, (self.method, strength, self.scope, self.further)))


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition's replies of one emotion and valence, or of `all`.

    accuracy: by judge: the share that the target matches, of the verdicts that there are; for unsteered replies the
    share of false positives. unjudged: by judge: replies that lack a verdict, for a filter or for want of an answer.
    perplexity, fluency: medians of the ratios (`Scored`). capped, leak: shares. openings: how many different first
    three words the replies of an emotion have, over the replies: 1 where no two begin alike. The others are means.
    Intervals are over groups of messages.
    """

    condition: Condition
    emotion: str
    valence: str
    replies: int
    accuracy: dict[str, Estimate | None]
    unjudged: dict[str, int]
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
    openings: float | None
    regimes: dict[str, float]


def conditions(scored: Sequence[Scored]) -> list[Condition]:
    """In the order of the plan."""
    return list(dict.fromkeys(condition_of(reply) for reply in scored))


def condition_of(reply: Scored) -> Condition:
    return Condition(reply.key.method, reply.key.strength, reply.key.scope, reply.key.further)


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
    measured = [reply for reply in chosen if not reply.kept_back]

    def over(pairs: Sequence[tuple[float | None, str]], *, median: bool = False) -> Estimate | None:
        known = [(value, group) for value, group in pairs if value is not None]
        if not known:
            return None
        return by_group([value for value, _ in known], [group for _, group in known], seed, median=median)

    def of(value: Callable[[Scored], float | None], *, median: bool = False) -> Estimate | None:
        return over([(value(reply), reply.group) for reply in measured], median=median)

    def verdicts(reply: Scored, judge: str) -> list[Verdict]:
        return [verdict for target, verdict in reply.verdicts[judge].items() if emotion in (ALL, target)]

    def accuracy_by(judge: str) -> Estimate | None:
        return over([(said.match, reply.group) for reply in chosen for said in verdicts(reply, judge) if said.judged])

    def lacks_verdict(reply: Scored, judge: str) -> bool:
        return not all(verdict.judged for verdict in verdicts(reply, judge))

    return Cell(
        condition,
        emotion,
        valence,
        replies=len(chosen),
        accuracy={judge: accuracy_by(judge) for judge in judges},
        unjudged={judge: sum(lacks_verdict(reply, judge) for reply in chosen) for judge in judges},
        perplexity=of(lambda reply: reply.perplexity, median=True),
        fluency=of(lambda reply: reply.fluency, median=True),
        relevance=of(lambda reply: reply.relevance),
        repetition=of(lambda reply: reply.metrics.repetition),
        run=of(lambda reply: reply.metrics.run),
        distinct_1=of(lambda reply: reply.metrics.distinct_1),
        distinct_2=of(lambda reply: reply.metrics.distinct_2),
        words=of(lambda reply: reply.metrics.words),
        capped=of(lambda reply: reply.capped),
        leak=of(lambda reply: reply.metrics.leak),
        openings=openings([(reply.key.emotion, reply.text) for reply in measured]) if measured else None,
        regimes={name: sum(reply.regime == name for reply in measured) / max(len(measured), 1) for name in REGIMES},
    )
