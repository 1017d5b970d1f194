"""A probe's report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from emovllm_offline.reading.document import Section, flat, write_document
from emovllm_offline.reading.results import Results
from emovllm_offline.reporting import plots
from emovllm_offline.reporting.tables import Table

# Fewer texts of a label to test by are a first look.
FEW = 30


def write_report(results: Results, out: Path) -> None:
    """Raises: OSError."""
    write_document(f"Probe of {results.model}", summary(results), list(_notes(results)), list(_sections(results)), out)


def summary(results: Results) -> str:
    """What there is to say in a line or two."""
    best = results.best
    return (
        f"{len(results.labels)} labels; the layer with the best macro F1 on the dev texts is {best.layer} of "
        f"{len(results.layers)} (0 is the first). On the test texts its macro F1 is {best.test.f1}, that of the same "
        f"fit to shuffled labels {best.test.control}: selectivity {best.test.selectivity}."
    )


def layer_table(results: Results) -> Table:
    """The test figures of every layer, and the dev figure that the layer is chosen by; the chosen one has a *."""
    rows = [
        [
            f"{of.layer}{' *' if of.layer == results.layer else ''}",
            f"{of.depth:.2f}",
            f"{of.penalty:g}",
            f"{of.dev.f1.value:.3f}",
            str(of.test.f1),
            str(of.test.control),
            str(of.test.selectivity),
        ]
        for of in results.layers
    ]
    return Table(["layer", "depth", "penalty", "dev F1", "test F1", "shuffled labels", "selectivity"], rows)


def label_table(results: Results) -> Table:
    rows = [
        [one.label, str(one.texts), *("-" if value is None else f"{value:.3f}" for value in values)]
        for one in results.by_label
        for values in [(one.precision, one.recall, one.f1)]
    ]
    return Table(["label", "test texts", "precision", "recall", "F1"], rows)


def confusion_table(results: Results) -> Table:
    rows = [[name, *map(str, row)] for name, row in zip(results.labels, results.confusion, strict=True)]
    return Table(["is \\ told as", *results.labels], rows)


def depth_figure(results: Results) -> Any:
    """Macro F1 on the test texts over relative depth, beside that of the control, with intervals."""
    depth = [of.depth for of in results.layers]
    with plots.figure(4.2) as drawing:
        axes = drawing.subplots()
        for name, colour, style in (("f1", plots.colour(0), "-"), ("control", plots.GREY, "--")):
            figures = [getattr(of.test, name) for of in results.layers]
            label = "probe" if name == "f1" else "the same fit to shuffled labels"
            axes.plot(depth, [figure.value for figure in figures], color=colour, linestyle=style, label=label)
            low, high = [figure.low for figure in figures], [figure.high for figure in figures]
            axes.fill_between(depth, low, high, color=colour, alpha=0.25, linewidth=0)
        best = results.best
        axes.scatter([best.depth], [best.test.f1.value], s=80, facecolors="none", edgecolors="black", zorder=3)
        axes.set(xlabel="relative depth (1: after the last layer)", ylabel="macro F1", ylim=(0, 1), xlim=(0, 1.02))
        axes.legend(frameon=False)
    return drawing


def confusion_figure(results: Results) -> Any:
    """The share of each label's test texts that are told as each label."""
    counts = np.array(results.confusion, np.float64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = results.labels
    with plots.figure(max(3.0, 0.5 * len(names) + 1.5)) as drawing:
        axes = drawing.subplots()
        image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        plots.write_cells(axes, shares, "{:.2f}", image.norm)
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="told as", ylabel="is")
        drawing.colorbar(image, ax=axes, label="share of the label's texts")
    return drawing


def _sections(results: Results) -> Iterator[Section]:
    yield Section(
        "Every layer",
        "Macro F1 is the mean of the labels' F1, each label counting alike. In brackets 95% intervals, of a bootstrap "
        "over groups of texts. Shuffled labels: the same fit, to the labels in another order, on the same texts; "
        "selectivity: by how much the probe is better. The layer (*) and each layer's penalty are chosen on the dev "
        "texts; the test texts choose nothing.",
        layer_table(results),
        plots.data_uri(plots.png(depth_figure(results))),
    )
    yield Section("Each label", f"On the test texts, at layer {results.layer}.", label_table(results))
    yield Section(
        "Confusion",
        f"Test texts at layer {results.layer}: rows are their labels, columns what the probe tells them as.",
        confusion_table(results),
        plots.data_uri(plots.png(confusion_figure(results))),
    )
    yield Section(
        "Settings",
        "What it was made of.",
        Table(["what", "value"], [("digest", results.digest[:16]), *flat(results.about)]),
    )


def _notes(results: Results) -> Iterator[str]:
    """What a reader must know before trusting the figures."""
    best = results.best
    if best.test.selectivity.low <= 0:
        yield "The probe is not better than its control, as far as these texts tell: it reads nothing that lasts."
    if few := [f"{one.label} ({one.texts})" for one in results.by_label if one.texts < FEW]:
        yield f"Few test texts: {', '.join(few)}. Their figures are a first look."
    for reason, count in results.about["data"]["left out"].items():
        yield f"Left out: {count} texts ({reason})."
