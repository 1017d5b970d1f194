"""The report of `emovllm probe separate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from emovllm_offline.reading.document import Section, flat, write_document
from emovllm_offline.reading.report import FEW
from emovllm_offline.reading.separate import WAYS, Separated, Way
from emovllm_offline.reporting import plots
from emovllm_offline.reporting.tables import Table

ABOUT = {
    "generation": "The model writes the reply, below the prompt that asked for its emotion.",
    "own turn": "The model writes the same reply to the same message, and nothing asks for an emotion.",
    "comprehension": "The model reads the same words as its user's message.",
}
_STYLES = {"raw": "--", "centred": "-"}


def write_report(separated: Separated, out: Path) -> None:
    """Raises: OSError."""
    title = f"How far apart emotions lie in {separated.model}"
    write_document(title, summary(separated), list(_notes(separated)), list(_sections(separated)), out)
    separated.save(out)


def summary(separated: Separated) -> str:
    """What there is to say in a line or two."""
    parts = []
    for way in WAYS:
        best = separated.best(way)
        parts.append(f"{way} at layer {best.layer} (depth {best.depth:.2f}), d = {best.centred.effect}")
    return (
        f"{sum(separated.emotions.values())} replies in {len(separated.emotions)} emotions, {separated.groups} "
        f"scenarios. Centred, emotions lie furthest apart by {'; by '.join(parts)}."
    )


def way_table(separated: Separated, way: Way) -> Table:
    rows = []
    best = separated.best(way).layer
    for of in separated.ways[way]:
        raw, centred = of.raw, of.centred
        cells = [f"{value:.3f}" for value in (raw.vectors, raw.unrelated, centred.vectors)]
        p = "< 1e-300" if centred.p == 0 else f"{centred.p:.1e}"
        rows.append(
            [
                f"{of.layer}{' *' if of.layer == best else ''}",
                f"{of.depth:.2f}",
                *cells,
                str(raw.effect),
                str(centred.effect),
                f"{centred.auc:.3f}",
                p,
            ]
        )
    head = ["layer", "depth", "vectors, raw", "unrelated, raw", "vectors, centred", "d, raw", "d, centred", "AUC", "p"]
    return Table(head, rows)


def best_table(separated: Separated) -> Table:
    rows = [
        [way, f"{of.layer}", f"{of.depth:.2f}", str(of.raw.effect), str(of.centred.effect), f"{of.centred.auc:.3f}"]
        for way in WAYS
        for of in [separated.best(way)]
    ]
    return Table(["states while", "layer", "depth", "d, raw", "d, centred", "AUC"], rows)


def depth_figure(separated: Separated, what: Literal["effect", "vectors"]) -> Any:
    """effect: Cohen's d over relative depth; vectors: the mean cosine between emotions' vectors, beside unrelated
    texts'."""
    with plots.figure(4.4) as drawing:
        axes = drawing.subplots()
        for place, way in enumerate(WAYS):
            depth, colour = [of.depth for of in separated.ways[way]], plots.colour(place)
            for kind, style in _STYLES.items():
                at = [getattr(of, kind) for of in separated.ways[way]]
                values = [one.effect.value if what == "effect" else one.vectors for one in at]
                axes.plot(depth, values, style, color=colour, label=f"{way}, {kind}")
                if what == "effect":
                    low, high = [one.effect.low for one in at], [one.effect.high for one in at]
                    axes.fill_between(depth, low, high, color=colour, alpha=0.15, linewidth=0)
            if what == "vectors":
                unrelated = [of.raw.unrelated for of in separated.ways[way]]
                axes.plot(depth, unrelated, ":", color=colour, label=f"{way}, unrelated texts")
        label = "Cohen's d" if what == "effect" else "mean cosine between vectors"
        axes.set(xlabel="relative depth (1: after the last layer)", ylabel=label)
        drawing.legend(loc="outside lower center", ncols=3, frameon=False)
    return drawing


def _sections(separated: Separated) -> Iterator[Section]:
    yield Section(
        "Where they lie furthest apart",
        "Cohen's d: how far the cosines between replies in one emotion lie above those between replies in two, all "
        "of different scenarios, with 95% intervals of a bootstrap over scenarios. Raw: the states as they are. "
        "Centred: less the mean state of unrelated texts that are read the same way. AUC: Mann-Whitney's U as a share.",
        best_table(separated),
        plots.data_uri(plots.png(depth_figure(separated, "effect"))),
    )
    image: str | None = plots.data_uri(plots.png(depth_figure(separated, "vectors")))
    for way in WAYS:
        yield Section(
            way.capitalize(),
            f"{ABOUT[way]} Vectors: the mean cosine between the emotions' mean states; unrelated: the mean cosine "
            "between states of unrelated texts, which anisotropy alone gives.",
            way_table(separated, way),
            image,
        )
        image = None
    emotions = [(f"replies in {name}", str(count)) for name, count in separated.emotions.items()]
    settings = [*emotions, ("unrelated texts", str(separated.unrelated)), *flat(separated.about)]
    yield Section("Settings", "What it was made of.", Table(["what", "value"], settings))


def _notes(separated: Separated) -> Iterator[str]:
    """What a reader must know before trusting the figures."""
    yield (
        "The words of replies in one emotion are alike, and states are of words: d tells how far emotions lie apart, "
        "not why. The three ways have the same words. p takes pairs for independent, though they share replies: the "
        "interval of d does not."
    )
    if separated.groups < FEW:
        yield f"The replies are of {separated.groups} scenarios alone: the figures are a first look."
    if left_out := separated.about["left out"]:
        yield f"Left out: {left_out} replies (too long, or without a token)."
