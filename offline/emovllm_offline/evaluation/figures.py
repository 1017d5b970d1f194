"""The figures of an evaluation and of a calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from emovllm_offline.evaluation.choice import Bounds, Choice, Point
from emovllm_offline.evaluation.felt import KINDS, Parting
from emovllm_offline.evaluation.plan import NONE, WITH_STRENGTH
from emovllm_offline.evaluation.summary import ALL, Cell, find
from emovllm_offline.evaluation.tables import conditions_of
from emovllm_offline.intervals import Estimate
from emovllm_offline.reporting.plots import COLUMNS, GREY, colour, figure, legend, marker, panels

Value = Callable[[Cell], Estimate | None]


def accuracy_by_emotion(cells: Sequence[Cell], judge: str, emotions: Sequence[str]) -> Any:
    """Accuracy of each condition with its interval, one panel for each emotion, false positives among them."""
    conditions = conditions_of(cells)
    columns = min(3, len(emotions))
    rows = math.ceil(len(emotions) / columns)
    with figure(rows * (0.9 + 0.22 * len(conditions))) as made:
        axes = made.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for i, ax in enumerate(axes.flat):
            if i >= len(emotions):
                ax.set_visible(False)
                continue
            for y, condition in enumerate(conditions):
                cell = find(cells, condition, emotions[i])
                estimate = cell.accuracy[judge] if cell else None
                if estimate is None:
                    continue
                method = [NONE, "prompting", *WITH_STRENGTH].index(condition.method)
                _whisker(ax, estimate, y, method)
            ax.set_title(emotions[i])
            ax.set_yticks(range(len(conditions)), [str(condition) for condition in conditions])
            ax.set_xlim(-0.02, 1.02)
        axes[0, 0].set_ylim(len(conditions) - 0.5, -0.5)
        made.supxlabel(
            f"share of replies that the judge {judge} takes for the emotion (none: false positives)", fontsize=10
        )
    return made


def felt_and_shown(partings: Sequence[Parting], judge: str, emotions: Sequence[str]) -> Any:
    """The share of each kind of reply with its interval, one panel for each emotion, condition by condition."""
    of_judge = [of for of in partings if of.judge == judge]
    conditions = list(dict.fromkeys(of.condition for of in of_judge))
    there = [emotion for emotion in emotions if any(of.emotion == emotion for of in of_judge)]
    rows = math.ceil(len(there) / COLUMNS)
    with figure(rows * (0.7 + 0.45 * len(conditions)) + 0.8) as made:
        axes = panels(made, len(there), sharex=True, sharey=True)
        for ax, emotion in zip(axes, there, strict=True):
            for of in of_judge:
                if of.emotion == emotion:
                    for number, kind in enumerate(KINDS):
                        _whisker(ax, of.shares[kind], conditions.index(of.condition) + 0.2 * (number - 1.5), number)
            ax.set_title(emotion)
            ax.set_yticks(range(len(conditions)), [str(condition) for condition in conditions])
            ax.set_xlim(-0.02, 1.02)
        axes[0].set_ylim(len(conditions) - 0.5, -0.5)
        made.suptitle(f"share of replies, shown by the judge {judge} (none: of plain replies, by chance)", fontsize=10)
        legend(made, KINDS, line=False)
    return made


def _whisker(ax: Any, estimate: Estimate, y: float, number: int) -> None:
    """A share with its interval, in the colour and shape of a number."""
    low, high = estimate.value - estimate.low, estimate.high - estimate.value
    ax.errorbar(
        estimate.value,
        y,
        xerr=[[max(low, 0)], [max(high, 0)]],
        color=colour(number),
        marker=marker(number),
        markersize=5,
        capsize=2,
    )


def frontier(cells: Sequence[Cell], judge: str) -> Any:
    """Accuracy against fluency, or perplexity without prompted replies, and against repetition: what an emotion costs,
    condition by condition."""
    fluency: tuple[str, Value] = (
        "perplexity given the instruction,\nover the prompted reply's (median)",
        lambda cell: cell.fluency,
    )
    if not any(cell.fluency for cell in cells):
        # Nobody was prompted.
        fluency = "perplexity, over the plain reply's (median)", lambda cell: cell.perplexity
    measures: list[tuple[str, Value]] = [
        fluency,
        ("share of repeated 3-grams (mean)", lambda cell: cell.repetition),
    ]
    # A line for each way over its strengths.
    ways = list(dict.fromkeys(condition._replace(strength=0.0) for condition in conditions_of(cells)))
    with figure(4.2 + 0.2 * math.ceil(len(ways) / 4)) as made:
        for ax, (label, value) in zip(made.subplots(1, 2, sharey=True), measures, strict=True):
            for number, way in enumerate(ways):
                of_way = [cell for cell in cells if cell.condition._replace(strength=0.0) == way]
                points = _points(of_way, judge, value)
                if not points:
                    continue
                xs, ys, _ = zip(*points, strict=True)
                ax.plot(xs, ys, color=colour(number), marker=marker(number), linewidth=1, label=str(way))
                for x, y, name in points if len(points) > 1 else []:
                    ax.annotate(name, (x, y), (4, 3), textcoords="offset points", fontsize=8, color=GREY)
            ax.set_xlabel(label)
            ax.set_ylim(-0.02, 1.02)
        handles, labels = ax.get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
        made.supylabel(f"accuracy, judge {judge}", fontsize=10)
    return made


def calibration(points: Mapping[str, Sequence[Point]], choices: Mapping[str, Choice], bounds: Bounds) -> Any:
    """Each emotion's frontier: accuracy against fluency over the strengths, the chosen one ringed."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    with figure(2.9 * math.ceil(len(points) / COLUMNS) + 0.3) as made:
        axes = panels(made, len(points), sharey=True)
        for number, (ax, (emotion, of_emotion)) in enumerate(zip(axes, points.items(), strict=True)):
            line = sorted(of_emotion, key=lambda point: point.strength)
            ax.plot(
                [point.fluency for point in line],
                [point.accuracy for point in line],
                color=colour(number),
                marker=marker(number),
                linewidth=1,
            )
            for point in line:
                ax.annotate(
                    f"{point.strength:g}",
                    (point.fluency, point.accuracy),
                    (4, 3),
                    textcoords="offset points",
                    fontsize=8,
                    color=GREY,
                )
            chosen = choices[emotion].recommended
            if chosen is not None:
                ax.scatter([chosen.fluency], [chosen.accuracy], s=120, facecolors="none", edgecolors="black", zorder=3)
            for each in bounds.in_turn():
                ax.axvline(each.fluency, color=GREY, linestyle="--", linewidth=1)
            ax.set_xscale("log")
            # Most span less than a decade, whose own ticks would be one.
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.set_ylim(-0.02, 1.05)
            ax.set_title(emotion)
        made.supxlabel(
            "median perplexity given the instruction, over the prompted reply's (dashed: bounds)", fontsize=10
        )
        made.supylabel("accuracy", fontsize=10)
    return made


def _points(cells: Sequence[Cell], judge: str, value: Value) -> list[tuple[float, float, str]]:
    points = []
    for cell in cells:
        x, y = value(cell), cell.accuracy[judge]
        if (cell.emotion, cell.valence) == (ALL, ALL) and x is not None and y is not None:
            points.append((x.value, y.value, f"{cell.condition.strength:g}"))
    return points
