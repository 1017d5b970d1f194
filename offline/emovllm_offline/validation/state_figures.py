"""The figures of the states of prompts: on their principal components, and on their way through the layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from emovllm_offline.reporting.plots import COLUMNS, GREY, WIDTH, colour, figure, legend, marker, panels
from emovllm_offline.validation.results import CONDITIONS

if TYPE_CHECKING:
    from emovllm_offline.validation.results import Components, Trajectory, Validation

# How many layers stand for all, and how many panels are side by side where all are shown.
LAYERS = 6
GRID_COLUMNS = 6


def components(validation: Validation) -> Any:
    """Small multiples: the states on two principal components, for some layers; below each row the pure ones."""
    layers = chosen(validation.components)
    pure = {of_layer.layer: of_layer for of_layer in validation.pure}
    rows: list[list[tuple[str, Components]]] = []
    for start in range(0, len(layers), COLUMNS):
        some = layers[start : start + COLUMNS]
        rows.append([(f"layer {of.layer}", of) for of in some])
        if pure:
            rows.append([(f"layer {of.layer}, pure", pure[of.layer]) for of in some])
    columns = len(rows[0])
    with figure(3.3 * len(rows) + 0.4) as fig:
        axes = fig.subplots(len(rows), columns, squeeze=False)
        for of_row, row in zip(axes, rows, strict=True):
            for ax in of_row[len(row) :]:
                ax.remove()
            for ax, (title, of_layer) in zip(of_row, row, strict=False):
                _scatter(ax, of_layer, 14)
                first, second, *_ = of_layer.explained
                ax.set_title(title)
                ax.set_xlabel(f"PC 1 ({first:.0%} of variance)")
                ax.set_ylabel(f"PC 2 ({second:.0%})")
                ax.locator_params(nbins=4)
        legend(fig, validation.emotions, line=False)
    return fig


def components_all(validation: Validation) -> Any:
    """A page-wide grid: the states of every layer on their two principal components."""
    return _grid(validation, validation.components)


def pure_all(validation: Validation) -> Any:
    """The same of the pure states."""
    return _grid(validation, validation.pure)


def chosen(of_layers: Sequence[Components]) -> list[Components]:
    """Evenly spaced ones, the first and the last among them."""
    places = np.linspace(0, len(of_layers) - 1, min(LAYERS, len(of_layers)))
    return [of_layers[round(place)] for place in places]


def _grid(validation: Validation, of_layers: Sequence[Components]) -> Any:
    side = WIDTH / GRID_COLUMNS
    with figure(side * 1.1 * math.ceil(len(of_layers) / GRID_COLUMNS) + 0.5) as fig:
        for ax, of_layer in zip(panels(fig, len(of_layers), GRID_COLUMNS), of_layers, strict=True):
            _scatter(ax, of_layer, 5)
            first, second, *_ = of_layer.explained
            ax.set_title(f"{of_layer.layer}: {first:.0%}, {second:.0%}", fontsize=9)
            # Each layer has a scale of its own: what is told is the shape.
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(True)
        legend(fig, validation.emotions, line=False)
    return fig


def _scatter(ax: Any, of_layer: Components, size: float) -> None:
    for e, points in enumerate(of_layer.points):
        x, y, *_ = np.array(points).T
        ax.scatter(x, y, s=size, c=colour(e), marker=marker(e), alpha=0.65, linewidths=0)


def trajectories(validation: Validation) -> Any:
    """One panel for each emotion: how far states lie along its direction, layer by layer, in each condition."""
    emotions = validation.emotions
    with figure(2.9 * math.ceil(len(emotions) / COLUMNS) + 0.5) as fig:
        along = "along the emotion's direction\n(units of the residual)"
        axes = panels(fig, len(emotions), xlabel="layer", ylabel=along, sharex=True)
        for e, (ax, name) in enumerate(zip(axes, emotions, strict=True)):
            for condition, style in _styles(e).items():
                of = find_trajectory(validation, name, condition)
                layers = range(len(of.mean))
                ax.fill_between(layers, of.low, of.high, color=style["color"], alpha=0.2, linewidth=0)
                ax.plot(layers, of.mean, linewidth=1.6, **style)
            ax.set_title(name)
            ax.xaxis.get_major_locator().set_params(integer=True)
        _conditions_legend(fig)
    return fig


def paths(validation: Validation) -> Any:
    """One panel for each emotion: where the circuit, and a prompt that asks for it, take a neutral prompt's state."""
    emotions = validation.emotions
    with figure(3.2 * math.ceil(len(emotions) / COLUMNS) + 0.5) as fig:
        axes = panels(
            fig,
            len(emotions),
            xlabel="PC 1 of the directions (RMS of the residual)",
            ylabel="PC 2 of the directions\n(RMS of the residual)",
            sharex=True,
            sharey=True,
        )
        for e, (ax, name) in enumerate(zip(axes, emotions, strict=True)):
            styles = _styles(e)
            ax.scatter([0], [0], s=30, color=styles["neutral"]["color"], zorder=3)
            for condition in ("circuit", "asked"):
                x, y = np.array(find_trajectory(validation, name, condition).path).T
                ax.plot(x, y, linewidth=1.3, marker=".", markersize=4, **styles[condition])
                middle = len(x) // 2
                ax.scatter(
                    x[middle], y[middle], s=22, facecolors="white", edgecolors=styles[condition]["color"], zorder=3
                )
                ax.annotate(str(len(x) - 1), (x[-1], y[-1]), (3, 3), textcoords="offset points", fontsize=8)
            ax.set_title(name)
        _conditions_legend(fig, marker="o", linestyle="none")
    return fig


def find_trajectory(validation: Validation, emotion: str, condition: str) -> Trajectory:
    """Raises: KeyError."""
    for of in validation.trajectories:
        if (of.emotion, of.condition) == (emotion, condition):
            return of
    raise KeyError((emotion, condition))


def _styles(e: int) -> dict[str, dict[str, Any]]:
    """How the line of each condition is drawn in an emotion's panel."""
    looks = zip(CONDITIONS, (GREY, colour(e), "black"), ("--", "-", ":"), strict=True)
    return {condition: {"color": shade, "linestyle": line} for condition, shade, line in looks}


def _conditions_legend(fig: Any, **neutral: str) -> None:
    """neutral: how else the neutral prompt is drawn than by its line."""
    from matplotlib.lines import Line2D

    told = ("neutral prompt", "neutral prompt under the circuit (in the emotion's colour)", "prompt that asks for it")
    styles = _styles(0)
    styles["neutral"] |= neutral
    handles = [Line2D([], [], label=text, **style) for text, style in zip(told, styles.values(), strict=True)]
    fig.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
