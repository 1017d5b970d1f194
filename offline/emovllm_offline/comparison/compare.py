"""Runs beside each other, kind by kind: `emovllm compare`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emovllm.errors import OptionError
from emovllm_offline.comparison import circuits, probes, steering
from emovllm_offline.comparison.report import write_report
from emovllm_offline.comparison.rows import SHORT, Comparison, Kind, OfKind, Row, Size
from emovllm_offline.comparison.runs import SOURCES, Run, load_runs

# What runs' files say of how they were made, where they do.
_ABOUT = ("command", "dtype", "seed", "versions")


def run(given: Sequence[str], out: Path) -> Comparison:
    """Reads the runs, and writes comparison.json and the report. Raises: EmovllmError, OSError."""
    comparison = compare(load_runs(given))
    write_report(comparison, out)
    return comparison


def compare(runs: Sequence[Run]) -> Comparison:
    """Raises: OptionError where there is none."""
    if not runs:
        raise OptionError("give the folders of runs to compare")
    by_kind = {kind: found for kind in SOURCES if (found := {run.name: run for run in runs if run.kind == kind})}
    sizes = _sizes(runs)
    return Comparison(
        tables=tuple(_of_kind(kind, found, by_kind, sizes) for kind, found in by_kind.items()),
        about={kind: {name: _about(run.content) for name, run in found.items()} for kind, found in by_kind.items()},
    )


def _sizes(runs: Sequence[Run]) -> dict[str, Size]:
    """Of each model, what most is known: a run of one kind tells what those of others do not."""
    sizes: dict[str, Size] = {}
    for run in runs:
        known, told = sizes.get(run.content.model), run.size
        if told is not None and (known is None or known.parameters is None):
            sizes[run.content.model] = told
    return sizes


def _of_kind(
    kind: Kind, found: Mapping[str, Run], by_kind: Mapping[Kind, Mapping[str, Run]], sizes: Mapping[str, Size]
) -> OfKind:
    rows = [
        row
        for name, run in found.items()
        for row in SOURCES[kind].rows(name, run.content, sizes.get(run.content.model))
    ]
    contents = _contents(found)
    notes = list(_unlike(rows))
    if kind == "probe train":
        rows, said = probes.beside_answers(rows, contents, _contents(by_kind.get("probe compare", {})))
        notes += said
    elif kind == "probe prompts":
        notes += _other_prompts(contents)
    elif kind == "evaluate":
        notes += steering.notes(contents)
    elif kind == "circuit":
        notes += circuits.notes(contents)
    return OfKind(kind=kind, rows=tuple(rows), notes=tuple(notes))


def _contents(found: Mapping[str, Run]) -> dict[str, Any]:
    return {name: run.content for name, run in found.items()}


def _unlike(rows: Sequence[Row]) -> Iterator[str]:
    """Where figures of one table are not of the same."""
    texts: dict[str, dict[str, None]] = {}
    labels: dict[tuple[str, ...], dict[str, None]] = {}
    for row in rows:
        texts.setdefault(row.texts, {})[row.run] = None
        labels.setdefault(row.labels, {})[row.run] = None
    texts.pop("", None)
    if len(texts) > 1:
        told = "; ".join(f"{digest[:SHORT]}: {', '.join(names)}" for digest, names in texts.items())
        yield f"Figures of different texts are not comparable, and these runs are of {len(texts)} sets ({told})."
    if len(labels) > 1:
        told = "; ".join(f"{', '.join(names)}: {', '.join(of)}" for of, names in labels.items())
        yield f"Figures over different labels are not comparable, and these runs have {len(labels)} sets ({told})."


def _other_prompts(found: Mapping[str, Any]) -> Iterator[str]:
    """System prompts that have one name and are not the same."""
    wordings: dict[str, set[str]] = {}
    for shifts in found.values():
        for of in shifts.prompts:
            wordings.setdefault(of.name, set()).add(of.text)
    if other := [name for name, texts in wordings.items() if len(texts) > 1]:
        yield f"System prompts of one name have other words in other runs: {', '.join(other)}."


def _about(content: Any) -> dict[str, Any]:
    return {name: content.about[name] for name in _ABOUT if name in content.about}
