"""What all figures share: their style, and how they are kept."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import numpy as np

# Okabe and Ito's palette, which colour-blind readers can tell apart; its yellow, weak on white, comes last.
PALETTE = ("#D55E00", "#0072B2", "#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"
GREY = "#6e6e6e"
# Figures are embedded at this width: 10 inches are as wide as the page.
DPI = 110
WIDTH = 10.0
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.titlelocation": "left",
}
# Of small multiples.
COLUMNS = 3


def colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def marker(index: int) -> str:
    """Shifted by one each time that the colours begin anew: no two of 64 share both."""
    return MARKERS[(index + index // len(PALETTE)) % len(MARKERS)]


@contextmanager
def figure(height: float) -> Iterator[Any]:
    """A figure of the page's width, apart from pyplot and its global state."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        fig = Figure((WIDTH, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(fig)
        yield fig


def png(fig: Any) -> bytes:
    """The figure as a PNG file; the same bytes for the same figure."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        out = io.BytesIO()
        fig.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def data_uri(image: bytes) -> str:
    """A PNG file as the address of an image that a page holds itself."""
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def panels(
    fig: Any, count: int, columns: int = COLUMNS, *, xlabel: str = "", ylabel: str = "", **shared: bool
) -> list[Any]:
    """Small multiples: the axes of so many, row by row. xlabel, ylabel: below each column and left of each row."""
    rows = math.ceil(count / columns)
    axes = fig.subplots(rows, min(columns, count), squeeze=False, **shared).flat
    used = []
    for ax, index in zip_longest(axes, range(count)):
        if index is None:
            ax.remove()
        else:
            used.append(ax)
            ax.tick_params(labelbottom=True)
            if index % columns == 0:
                ax.set_ylabel(ylabel)
            if index + columns >= count:
                ax.set_xlabel(xlabel)
    return used


def spread(count: int, most: int) -> list[int]:
    """About `most` evenly spaced numbers of 0..count-1: where an axis has ticks."""
    return list(range(0, count, math.ceil(count / most)))


def write_cells(ax: Any, values: np.ndarray, form: str, norm: Any) -> None:
    """Writes the values of a heatmap, [rows, columns], into its cells, unless they are too many to be read."""
    rows, columns = values.shape
    if columns > 40:
        return
    for i in range(rows):
        for j in range(columns):
            ink = "black" if norm(values[i, j]) > 0.55 else "white"
            ax.text(j, i, form.format(values[i, j]), ha="center", va="center", color=ink, fontsize=9)


def legend(fig: Any, emotions: Sequence[str], line: bool = True) -> None:
    """Below the figure: the colour and the shape of each emotion."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour(e), marker=marker(e), markersize=6, linestyle="-" if line else "none", label=name)
        for e, name in enumerate(emotions)
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False)
