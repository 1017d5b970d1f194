"""The report of `emovllm compare`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emovllm_offline.comparison.probes import DEPTHS, LINE, nearest
from emovllm_offline.comparison.rows import SHORT, Comparison, Kind, OfKind, Point, Row
from emovllm_offline.comparison.runs import SOURCES
from emovllm_offline.reading.document import PAGE as PAGE
from emovllm_offline.reading.document import Section, flat, write_document
from emovllm_offline.reporting import plots
from emovllm_offline.reporting.tables import Table

_DEPTH = "relative depth (1: after the last layer)"
# What the columns of a kind are.
TEXTS: dict[Kind, str] = {
    "probe train": "Macro F1 on the test texts, at the layer with the best macro F1 on the dev texts; that of the same "
    "fit to shuffled labels; and by how much the probe is better (selectivity), with 95% intervals of a bootstrap over "
    "groups of texts. Layers count from 0; depth is 1 after the last.",
    "probe compare": "Macro F1 and accuracy of the probe and of the model asked which label fits, on the same texts, "
    "and of telling the most frequent label always; the probe is ahead by the difference, on the same resamples.",
    "probe prompts": "The mean change of the logit of the emotion that a system prompt names, at the probe's own "
    "layer, against the same messages without one; and by how much it rises more than below the prompts that name "
    "another emotion. Logits are of each run's own probe: what is beyond 0 compares, their sizes do with care.",
    "probe separate": "Cohen's d of the cosines between replies in one emotion against those in two, at the layer "
    "where it is largest (centred): chosen by what it shows, it is a little flattered. Vectors: the mean cosine "
    "between the emotions' mean states; unrelated: between states of unrelated texts, which anisotropy alone gives.",
    "evaluate": "Over all emotions and messages, with 95% intervals over groups of messages.",
    "circuit": "Neurons, heads and recommended strengths are the least and the largest of the emotions'.",
}
# What is drawn over depth.
_AXES: dict[Kind, str] = {
    "probe train": "macro F1 on the test texts",
    "probe prompts": "change of the named emotion's logit",
    "probe separate": "Cohen's d, centred",
}
# Changes have a sign.
_FORMS: dict[Kind, str] = {"probe prompts": "+.3f", "evaluate": ".3g"}


def write_report(comparison: Comparison, out: Path) -> None:
    """comparison.json, report.md and report.html. Raises: OSError."""
    notes = [
        "Intervals are of each run alone. Runs on the same texts share what is odd about these: intervals that meet do "
        "not show that two runs are equal. Data: the first digits of a sha256 of the texts that a run was measured on; "
        "n: how many texts, messages, replies or scenarios these are.",
        *(f"{of.kind}: {note}" for of in comparison.tables for note in of.notes),
    ]
    write_document("Runs beside each other", summary(comparison), notes, list(_sections(comparison)), out)
    comparison.save(out)


def summary(comparison: Comparison) -> str:
    """What there is to say in a line or two."""
    parts = []
    for of in comparison.tables:
        runs = len({row.run for row in of.rows})
        parts.append(f"{runs} run{'s' if runs > 1 else ''} of {of.kind}")
    models = len({row.model for of in comparison.tables for row in of.rows})
    return f"{', '.join(parts)}; {models} model{'s' if models > 1 else ''}."


def tables(comparison: Comparison) -> Iterator[Table]:
    """Those of the terminal."""
    for of in comparison.tables:
        yield figure_table(of)
        if of.kind == "probe train":
            yield depth_table(of)


def figure_table(of: OfKind) -> Table:
    """A row for each run, or part of one, with all figures; a column that no run fills is left out."""
    part, form = SOURCES[of.kind].part, _FORMS.get(of.kind, ".3f")
    facts = list(dict.fromkeys(name for row in of.rows for name in row.facts))
    figures = list(dict.fromkeys(name for row in of.rows for name in row.figures))
    # A run's name begins with its model's unless it was given another.
    named = any(not row.run.startswith(row.model.rpartition("/")[2]) for row in of.rows)
    head = ["run", *([part] if part else []), *(["model"] if named else []), "size", "labels", "data", "n"]
    rows = [
        [
            row.run,
            *([row.part] if part else []),
            *([row.model] if named else []),
            "-" if row.size is None else str(row.size),
            str(len(row.labels)),
            row.texts[:SHORT] or "-",
            str(row.count),
            *(row.facts.get(name, "-") for name in facts),
            *("-" if (value := row.figures.get(name)) is None else value.told(form) for name in figures),
        ]
        for row in of.rows
    ]
    return Table([*head, *facts, *figures], rows, title=of.kind)


def depth_table(of: OfKind) -> Table:
    """Of probes: macro F1 on the test texts at the layers nearest to some depths."""
    rows = [[row.run, *(nearest(row.depths[LINE], depth).value.told() for depth in DEPTHS)] for row in of.rows]
    head = ["run", *(f"F1 at {depth:g}" for depth in DEPTHS)]
    return Table(head, rows, title="probe train: macro F1 at relative depths, of the nearest layer")


def depth_figure(of: OfKind) -> Any:
    """A line for each run over relative depth, with its intervals, and a ring where the table's figures are; a panel
    for each part of the runs. Raises: KeyError for a kind whose figures are of no layer."""
    label = _AXES[of.kind]
    lines = list(dict.fromkeys(name for row in of.rows for name in row.depths))
    runs = list(dict.fromkeys(row.run for row in of.rows))
    height = 2.8 if len(lines) > 1 else 4.2
    with plots.figure(height * -(-len(lines) // plots.COLUMNS) + 0.3) as drawing:
        for axes, name in zip(plots.panels(drawing, len(lines), sharey=True), lines, strict=True):
            for row in of.rows:
                if name in row.depths:
                    _draw(axes, row, row.depths[name], runs.index(row.run))
            if len(lines) > 1:
                axes.set_title(name)
            axes.set(xlim=(0, 1.02))
            if of.kind == "probe train":
                axes.set(ylim=(0, 1))
            else:
                axes.axhline(0, color=plots.GREY, linewidth=0.8)
        drawing.supxlabel(_DEPTH, fontsize=10)
        drawing.supylabel(label, fontsize=10)
        plots.legend(drawing, runs)
    return drawing


def _draw(axes: Any, row: Row, points: Sequence[Point], place: int) -> None:
    depth, values = [point.depth for point in points], [point.value for point in points]
    colour = plots.colour(place)
    axes.plot(depth, [one.value for one in values], color=colour, marker=plots.marker(place), markersize=3)
    low, high = ([getattr(one, end) for one in values] for end in ("low", "high"))
    axes.fill_between(depth, low, high, color=colour, alpha=0.15, linewidth=0)
    if "depth" in row.facts:
        told = nearest(points, float(row.facts["depth"]))
        axes.scatter([told.depth], [told.value.value], s=70, facecolors="none", edgecolors="black", zorder=3)


def _sections(comparison: Comparison) -> Iterator[Section]:
    for of in comparison.tables:
        drawn = plots.data_uri(plots.png(depth_figure(of))) if of.kind in _AXES else None
        trained = of.kind == "probe train"
        yield Section(of.kind.capitalize(), TEXTS[of.kind], figure_table(of), None if trained else drawn)
        if trained:
            text = "Macro F1 on the test texts, at the layer nearest to each depth."
            yield Section("Over depth", text, depth_table(of), drawn)
    runs = list(_runs(comparison))
    yield Section(
        "The runs", "Of which model each is, and of which labels.", Table(["run", "kind", "model", "labels"], runs)
    )
    made = [
        [kind, name, what, told]
        for kind, of_kind in comparison.about.items()
        for name, about in of_kind.items()
        for what, told in flat(about)
    ]
    yield Section("Settings", "What the runs say of themselves.", Table(["kind", "run", "what", "value"], made))


def _runs(comparison: Comparison) -> Iterator[list[str]]:
    for of in comparison.tables:
        first: dict[str, Row] = {}
        for row in of.rows:
            first.setdefault(row.run, row)
        for name, row in first.items():
            yield [name, of.kind, row.model, ", ".join(row.labels)]
