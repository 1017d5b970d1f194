"""Evaluations beside each other: how often emotions show, by which judge, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping

from emovllm_offline.comparison.rows import SHORT, Row, Size, Value
from emovllm_offline.evaluation.results import Summary
from emovllm_offline.evaluation.summary import ALL, Cell
from emovllm_offline.intervals import Estimate


def rows(name: str, summary: Summary, size: Size | None) -> list[Row]:
    """One for each method and strength, over all emotions and valences."""
    return [_row(name, summary, size, cell) for cell in summary.cells if (cell.emotion, cell.valence) == (ALL, ALL)]


def size_of(summary: Summary) -> None:
    """It is not said there."""


def notes(found: Mapping[str, Summary]) -> list[str]:
    """What the figures of these evaluations are, and where they were not made alike."""
    said = [
        "Accuracy of `none` is the share of false positives. Perplexity and fluency: medians over those of the same "
        "model's unsteered and prompted replies, so that they are of each model in its own terms. A judge decides what "
        "accuracy means: compare within a column."
    ]
    for judge in dict.fromkeys(name for summary in found.values() for name in summary.judges):
        if len({str(summary.judges[judge]) for summary in found.values() if judge in summary.judges}) > 1:
            said.append(f"The judge {judge} is not set up alike in all runs: its figures are not comparable.")
    for what, setting in (("replies of other lengths", "decoding"), ("other prompts", "style")):
        if len({str(summary.settings[setting]) for summary in found.values()}) > 1:
            said.append(f"The runs have {what} (`{setting}` in evaluate.json): figures are not comparable.")
    return said


def _row(name: str, summary: Summary, size: Size | None, cell: Cell) -> Row:
    measures = ("perplexity", "fluency", "relevance", "repetition", "leak")
    return Row(
        run=name,
        part=str(cell.condition),
        model=summary.model,
        size=size,
        labels=tuple(summary.settings["emotions"]),
        texts=summary.settings["messages"]["sha256"],
        count=cell.replies,
        facts={"circuit": summary.circuit[:SHORT]},
        figures={
            **{f"accuracy, {judge}": _value(cell.accuracy[judge]) for judge in summary.judges},
            **{measure: _value(getattr(cell, measure)) for measure in measures},
        },
    )


def _value(estimate: Estimate | None) -> Value | None:
    return None if estimate is None else Value.of(estimate)
