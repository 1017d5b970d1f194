"""The figures of a report. Each function draws one, and knows the emotions by their order alone."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from emovllm.show import jaccard
from emovllm_offline.reporting.plots import COLUMNS, GREY, colour, figure, legend, marker, panels, spread, write_cells

if TYPE_CHECKING:
    from emovllm.circuit import Circuit
    from emovllm_offline.validation.results import Curve, Validation


def units(circuit: Circuit) -> Any:
    """How many neurons and heads of each layer the circuit of each emotion has."""
    layers = circuit.spec.model.num_hidden_layers
    with figure(2 * (0.9 + 0.36 * len(circuit.names))) as fig:
        for ax, kind in zip(fig.subplots(2, 1), ("neurons", "heads"), strict=True):
            of_kind = getattr(circuit, kind)
            counts = np.array([np.bincount(of_kind[name].layer, minlength=layers) for name in circuit.names])
            image = ax.imshow(counts, cmap="cividis", aspect="auto", vmin=0, interpolation="nearest")
            write_cells(ax, counts, "{:d}", image.norm)
            ax.set_yticks(range(len(circuit.names)), circuit.names)
            ax.set_xticks(spread(layers, 16))
            ax.set_title(f"{kind} per layer")
            fig.colorbar(image, ax=ax, label=kind, pad=0.01)
        ax.set_xlabel("layer")
    return fig


def sweep(validation: Validation, mode: str, kind: str) -> Any:
    """One panel for each emotion: the score's change by k, and that of random units."""
    emotions = validation.emotions
    with figure(2.9 * math.ceil(len(emotions) / COLUMNS) + 0.4) as fig:
        signals = np.array(validation.signal("mlp"))
        far = max(np.abs(find_curve(validation, mode, kind, name).mean).max() for name in emotions)
        linear = 10 ** np.ceil(np.log10(max(signals.max(), 1e-9)))
        # A destroyed residual must not flatten the range that matters.
        bent = far > 5 * linear
        scale = f"linear to {linear:g}, then logarithmic" if bent else "units of the residual"
        change = f"change of the score\n({scale})"
        axes = panels(fig, len(emotions), xlabel=f"k: {kind} of every layer", ylabel=change, sharex=True, sharey=True)
        for e, (ax, name) in enumerate(zip(axes, emotions, strict=True)):
            curve = find_curve(validation, mode, kind, name)
            x = np.log2(np.array(curve.k) + 1) if kind == "neurons" else np.array(curve.k)
            ax.fill_between(x, curve.random_low, curve.random_high, color=GREY, alpha=0.35, linewidth=0)
            ax.plot(x, curve.random_mean, color=GREY, linestyle="--", linewidth=1.4)
            ax.fill_between(x, curve.low, curve.high, color=colour(e), alpha=0.25, linewidth=0)
            ax.plot(x, curve.mean, color=colour(e), marker=marker(e), markersize=4, linewidth=1.6)
            ax.axhline(-signals[e] if mode == "ablation" else signals[e], color="black", linestyle=":", linewidth=1.2)
            ax.axhline(0, color=GREY, linewidth=0.6)
            ax.set_title(name, color="black")
            ax.set_xticks(x, [str(k) for k in curve.k])
            if bent:
                ax.set_yscale("symlog", linthresh=linear, linscale=2)
                decades = [linear * 10**power for power in range(int(np.log10(far / linear)) + 1)]
                ticks = [-tick for tick in decades[::-1]] + [-linear / 2, 0, linear / 2] + decades
                ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
                ax.set_yticks([], minor=True)
        _sweep_legend(fig)
    return fig


def find_curve(validation: Validation, mode: str, kind: str, emotion: str, site: str = "mlp") -> Curve:
    """Raises: KeyError."""
    for curve in validation.curves:
        if (curve.mode, curve.kind, curve.site, curve.emotion) == (mode, kind, site, emotion):
            return curve
    raise KeyError((mode, kind, site, emotion))


def probe(validation: Validation) -> Any:
    """The probe's F1 in every layer, and what the principal components explain there."""
    with figure(4.4) as fig:
        left, right = fig.subplots(1, 2)
        layers = np.arange(len(validation.f1))
        for e, values in enumerate(np.array(validation.f1).T):
            left.plot(layers, values, color=colour(e), marker=marker(e), markersize=3.5, linewidth=1, alpha=0.8)
        left.plot(layers, validation.macro_f1(), color="black", linewidth=2.4)
        chance = 1 / len(validation.emotions)
        left.axhline(chance, color=GREY, linestyle="--", linewidth=1)
        left.annotate("chance", (layers[-1], chance), (0, 3), textcoords="offset points", ha="right", color=GREY)
        left.set(ylim=(0, 1.03), xlabel="layer", ylabel="F1 (0 to 1)", title="linear probe (black: macro F1)")
        shares = np.array(validation.explained).T
        right.stackplot(layers, shares, colors=("#2b4b6f", "#6f93b8", "#bdd0e4"), linewidth=0)
        middle = len(layers) // 2
        edges = np.concatenate([[0], shares[:, middle].cumsum()])
        for number, (low, high) in enumerate(pairwise(edges)):
            ink = "white" if number == 0 else "black"
            if high - low > 0.05:
                right.text(middle, (low + high) / 2, f"PC {number + 1}", ha="center", va="center", color=ink)
        right.set(ylim=(0, 1), xlabel="layer", ylabel="share of variance", title="principal components")
        for ax in (left, right):
            ax.set_xlim(0, max(layers[-1], 1))
            ax.xaxis.get_major_locator().set_params(integer=True)
        legend(fig, validation.emotions)
    return fig


def overlap(circuit: Circuit) -> Any:
    """Jaccard index of the units of every two emotions."""
    names = circuit.names
    # Side by side as long as the cells' numbers have room.
    rows, columns, height = (1, 2, 5.0) if len(names) <= 10 else (2, 1, 2 * (1.6 + 0.34 * len(names)))
    with figure(height) as fig:
        axes = fig.subplots(rows, columns)
        for ax, kind in zip(axes, ("neurons", "heads"), strict=True):
            values = overlaps(circuit, kind)
            image = ax.imshow(values, cmap="cividis", vmin=0, vmax=1)
            write_cells(ax, values, "{:.2f}", image.norm)
            ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
            ax.set_yticks(range(len(names)), names)
            pairs = values[np.triu_indices(len(names), 1)]
            deviation = f" ± {pairs.std(ddof=1):.3f}" if len(pairs) > 1 else ""
            ax.set_title(f"{kind}: pairwise mean {pairs.mean():.3f}{deviation}" if len(pairs) else kind)
        fig.colorbar(image, ax=axes, shrink=0.75, pad=0.02, label="Jaccard index (shared / all)")
    return fig


def overlaps(circuit: Circuit, kind: str) -> np.ndarray:
    """Jaccard index of the units (layer, index) of every two emotions, [E, E]."""
    of_kind = getattr(circuit, kind)
    pairs = [
        set(zip(of_kind[name].layer.tolist(), of_kind[name].index.tolist(), strict=True)) for name in circuit.names
    ]
    return np.array([[jaccard(one, other) for other in pairs] for one in pairs])


def _sweep_legend(fig: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=colour(0), marker="o", markersize=4, label="the emotion's top k (in its colour)"),
        Line2D([], [], color=GREY, linestyle="--", label="k random units"),
        Patch(color=GREY, alpha=0.35, linewidth=0, label="95% interval"),
        Line2D([], [], color="black", linestyle=":", label="the emotion's own share of the score"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
