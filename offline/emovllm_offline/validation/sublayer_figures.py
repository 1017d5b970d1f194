"""The figures of a model's sublayers: how much each matters, and how alike their directions are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from emovllm_offline.discovery import directions
from emovllm_offline.reporting.plots import COLUMNS, GREY, colour, figure, legend, marker, panels, spread

if TYPE_CHECKING:
    from emovllm_offline.discovery.findings import Findings


def importance(findings: Findings) -> Any:
    """The importance of each sublayer, one line for each emotion."""
    with figure(4.2) as fig:
        axes = fig.subplots(1, 2, sharey=True)
        layers = np.arange(findings.importance.shape[1] // 2)
        for parity, (ax, name) in enumerate(zip(axes, ("attention", "MLP"), strict=True)):
            for e, values in enumerate(findings.importance):
                ax.plot(layers, values[parity::2], color=colour(e), marker=marker(e), markersize=3.5, linewidth=1.4)
            ax.axhline(0, color=GREY, linewidth=0.8)
            ax.set_title(f"after {name}")
            ax.set_xlabel("layer")
            ax.xaxis.get_major_locator().set_params(integer=True)
        axes[0].set_ylabel("importance (shift of the final state\nper unit of push, dimensionless)")
        legend(fig, findings.emotions)
    return fig


def importance_by_alpha(findings: Findings) -> Any:
    """One panel for each emotion: the importance of each sublayer, a line for each size of the push, and their mean.

    Raises: ValueError where it was not measured.
    """
    import matplotlib

    profiles, alphas = findings.importance_by_alpha, findings.alphas
    if profiles is None or alphas is None:
        raise ValueError("the findings have no importance by alpha: it is that of a gradient, or was measured before")
    shades = matplotlib.colormaps["cividis"](np.linspace(0, 0.85, len(alphas)))
    with figure(2.9 * math.ceil(len(profiles) / COLUMNS) + 0.5) as fig:
        axes = panels(
            fig, len(profiles), xlabel="sublayer", ylabel="importance (dimensionless)", sharex=True, sharey=True
        )
        for ax, name, profile, mean in zip(axes, findings.emotions, profiles, findings.importance, strict=True):
            for values, alpha, shade in zip(profile.T, alphas, shades, strict=True):
                ax.plot(values, color=shade, linewidth=1.2, label=f"alpha = {alpha:g}")
            ax.plot(mean, color="black", linestyle="--", linewidth=1.2, label="mean")
            ax.axhline(0, color=GREY, linewidth=0.8)
            ax.set_title(name)
            _name_sublayers(ax.xaxis, len(mean), 8)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    return fig


def similarity(findings: Findings) -> Any:
    """Heatmap of the cosines between the directions of every two sublayers."""
    with figure(7.6) as fig:
        ax = fig.subplots()
        image = _heatmap(ax, findings.similarity, 12)
        ax.set_xlabel("sublayer (A: after attention; the M of the same layer is next to it)")
        ax.set_ylabel("sublayer")
        fig.colorbar(image, ax=ax, shrink=0.8, label="cosine, mean over emotions")
    return fig


def similarity_by_emotion(findings: Findings) -> Any:
    """The same heatmap for each emotion."""
    sublayers = directions.interleave(findings.attn_directions, findings.mlp_directions)
    with figure(3.1 * math.ceil(len(sublayers) / COLUMNS) + 0.8) as fig:
        axes = panels(fig, len(sublayers))
        for ax, name, cosines in zip(axes, findings.emotions, directions.similarities(sublayers), strict=True):
            image = _heatmap(ax, cosines, 6)
            ax.set_title(name)
        fig.colorbar(image, ax=axes, shrink=0.6, aspect=40, location="bottom", label="cosine")
    return fig


def _heatmap(ax: Any, cosines: np.ndarray, most: int) -> Any:
    """cosines: [2L, 2L]; about `most` of the sublayers are named."""
    image = ax.imshow(cosines, cmap="PuOr", vmin=-1, vmax=1, origin="lower", interpolation="nearest")
    for axis in (ax.xaxis, ax.yaxis):
        _name_sublayers(axis, len(cosines), most)
    ax.spines[:].set_visible(True)
    return image


def _name_sublayers(axis: Any, count: int, most: int) -> None:
    """About `most` ticks at the A of a layer; its M is next to it."""
    ticks = spread(count // 2, most)
    axis.set_ticks([2 * layer for layer in ticks], [f"A{layer}" for layer in ticks])
