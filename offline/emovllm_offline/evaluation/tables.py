"""A summary as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from emovllm_offline.evaluation.felt import KINDS, Parting, Rise
from emovllm_offline.evaluation.summary import ALL, Cell, Condition, find
from emovllm_offline.intervals import Estimate
from emovllm_offline.judges.text import REGIMES
from emovllm_offline.reading.results import Figure
from emovllm_offline.reporting.tables import Table

# So many emotions fit a page side by side.
ACROSS = 10


def conditions_of(cells: Sequence[Cell]) -> list[Condition]:
    return list(dict.fromkeys(cell.condition for cell in cells))


def overview(cells: Sequence[Cell], judges: Sequence[str]) -> Table:
    """One row for each condition, over all emotions and valences."""
    lacking = [judge for judge in judges if any(cell.unjudged[judge] for cell in cells)]
    head = [
        "method, strength",
        "replies",
        *(f"accuracy, {judge}" for judge in judges),
        *(f"not judged, {judge}" for judge in lacking),
        "perplexity",
        "fluency",
        "relevance",
        "repetition",
        "longest run",
        "distinct-1 / -2",
        "words",
        "openings",
        "cut",
        "leak",
        " / ".join(REGIMES),
    ]
    rows = []
    for condition in conditions_of(cells):
        cell = find(cells, condition)
        assert cell is not None
        rows.append(
            [
                str(condition),
                str(cell.replies),
                *(accuracy(cell, judge) for judge in judges),
                *(str(cell.unjudged[judge]) for judge in lacking),
                number(cell.perplexity),
                number(cell.fluency),
                number(cell.relevance),
                percent(cell.repetition),
                number(cell.run),
                f"{_plain(cell.distinct_1)} / {_plain(cell.distinct_2)}",
                number(cell.words),
                _share(cell.openings),
                percent(cell.capped),
                percent(cell.leak),
                " / ".join(f"{cell.regimes[name]:.0%}" for name in REGIMES),
            ]
        )
    return Table(head, rows)


def by_emotion(cells: Sequence[Cell], judge: str, emotions: Sequence[str]) -> Table:
    """Accuracy of each emotion; of unsteered replies, false positives."""
    return _of_emotions(cells, emotions, lambda cell: accuracy(cell, judge))


def by_valence(cells: Sequence[Cell], judge: str) -> Table | None:
    """Accuracy of all emotions, by the message's valence; None where there is but one."""
    valences = _valences(cells)
    if not valences:
        return None
    rows = []
    for condition in conditions_of(cells):
        found = [find(cells, condition, ALL, valence) for valence in valences]
        rows.append([str(condition), *(accuracy(cell, judge) if cell else "-" for cell in found)])
    return Table(["method, strength", *valences], rows)


def by_emotion_and_valence(cells: Sequence[Cell], judge: str, emotions: Sequence[str]) -> Table | None:
    """Accuracy of each emotion by the message's valence, and of all (arXiv 2510.11328, tables 2 and 8); of unsteered
    replies, false positives. None where there is but one valence."""
    valences = _valences(cells)
    if not valences:
        return None
    rows = []
    for condition in conditions_of(cells):
        for emotion in (*emotions, ALL):
            found = [find(cells, condition, emotion, valence) for valence in (*valences, ALL)]
            rows.append([str(condition), emotion, *(accuracy(cell, judge) if cell else "-" for cell in found)])
    return Table(["method, strength", "emotion", *valences, ALL], rows)


def _valences(cells: Sequence[Cell]) -> list[str]:
    return [valence for valence in dict.fromkeys(cell.valence for cell in cells) if valence != ALL]


def fluency_by_emotion(cells: Sequence[Cell], emotions: Sequence[str]) -> Table:
    """Median perplexity ratio given the instruction, and the mean share of repeated 3-grams, of each emotion."""

    def cost(cell: Cell) -> str:
        return f"{_plain(cell.fluency)}, {_share(cell.repetition.value if cell.repetition else None)}"

    return _of_emotions(cells, emotions, cost)


def _of_emotions(cells: Sequence[Cell], emotions: Sequence[str], value: Callable[[Cell], str]) -> Table:
    """Conditions by emotions; many emotions have a row each."""
    head, rows = ["method, strength", *emotions], []
    for condition in conditions_of(cells):
        found = [find(cells, condition, emotion) for emotion in emotions]
        rows.append([str(condition), *(value(cell) if cell else "-" for cell in found)])
    if len(emotions) <= ACROSS:
        return Table(head, rows)
    turned = list(zip(head, *rows, strict=True))
    return Table(["emotion", *turned[0][1:]], turned[1:])


def felt_and_shown(partings: Sequence[Parting], judge: str) -> Table:
    """The share of each kind of reply beside one judge of texts, in percent."""
    return Table(
        ["method, strength", "emotion", "replies", *KINDS],
        [
            [str(of.condition), of.emotion, str(of.replies), *(percent(of.shares[kind]) for kind in KINDS)]
            for of in partings
            if of.judge == judge
        ],
    )


def rises(found: Sequence[Rise]) -> Table:
    """How probable the emotion asked for is read to be, beside the plain replies."""
    return Table(
        [
            "method, strength",
            "emotion",
            "replies",
            "in the reply",
            "at the prompt's end",
            "in plain replies",
            "more by",
        ],
        [
            [
                str(of.condition),
                of.emotion,
                str(of.replies),
                *(probability(value) for value in (of.reply, of.prompt, of.plain, of.rise)),
            ]
            for of in found
        ],
    )


def probability(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def accuracy(cell: Cell, judge: str) -> str:
    """With the number of verdicts that it is over, where some are missing."""
    estimate = cell.accuracy[judge]
    return percent(estimate) + (f" of {estimate.count}" if estimate and cell.unjudged[judge] else "")


def percent(estimate: Estimate | Figure | None, decimals: int = 1) -> str:
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.{decimals}f} ({100 * estimate.low:.0f}-{100 * estimate.high:.0f})"


def number(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:.3g} ({estimate.low:.3g}-{estimate.high:.3g})"


def _plain(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"
