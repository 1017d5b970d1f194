"""What system prompts move, and how far apart emotions lie, in several models' states."""

from __future__ import annotations

from emovllm_offline.comparison.rows import Point, Row, Size, Value
from emovllm_offline.reading.separate import WAYS, Separated
from emovllm_offline.reading.shift import OfPrompt, Shifts

BEYOND = "beyond other prompts"


def prompt_rows(name: str, shifts: Shifts, size: Size | None) -> list[Row]:
    """One for each prompt that names an emotion: that emotion, at the probe's own layer."""
    return [_prompt_row(name, shifts, size, of) for of in shifts.named]


def shifts_size(shifts: Shifts) -> Size:
    return Size.model_validate({"layers": shifts.of_layers, **shifts.about.get("size", {})})


def way_rows(name: str, separated: Separated, size: Size | None) -> list[Row]:
    """One for each way in which replies are read: the layer at which emotions lie furthest apart."""
    rows = []
    for way in WAYS:
        best = separated.best(way)
        rows.append(
            Row(
                run=name,
                part=way,
                model=separated.model,
                size=size,
                labels=tuple(separated.emotions),
                texts=separated.about.get("replies", separated.about.get("data", "")),
                count=sum(separated.emotions.values()),
                facts={
                    "scenarios": str(separated.groups),
                    "layer": f"{best.layer} of {len(separated.ways[way])}",
                    "depth": f"{best.depth:.2f}",
                },
                figures={
                    "d, centred": Value.of(best.centred.effect),
                    "d, raw": Value.of(best.raw.effect),
                    "AUC, centred": Value.of(best.centred.auc),
                    "vectors, centred": Value.of(best.centred.vectors),
                    "vectors, raw": Value.of(best.raw.vectors),
                    "unrelated, raw": Value.of(best.raw.unrelated),
                },
                depths={
                    way: tuple(Point(depth=of.depth, value=Value.of(of.centred.effect)) for of in separated.ways[way])
                },
            )
        )
    return rows


def separated_size(separated: Separated) -> Size:
    layers = len(next(iter(separated.ways.values())))
    return Size.model_validate({"layers": layers, **separated.about.get("size", {})})


def _prompt_row(name: str, shifts: Shifts, size: Size | None, of: OfPrompt) -> Row:
    at = of.at(shifts.layer)
    told = {
        what: "-" if pair is None else f"{pair[0]:.3f} to {pair[1]:.3f}"
        for what, pair in (("probability", of.probability), ("share where it leads", of.leads))
    }
    beyond = None if at.beyond is None else Value.of(at.beyond)
    return Row(
        run=name,
        part=of.name,
        model=shifts.model,
        size=size,
        labels=shifts.labels,
        texts=shifts.about["data"]["sha256"],
        count=shifts.texts,
        facts={"read at": shifts.at, "layer": f"{shifts.layer} of {shifts.of_layers}", **told},
        figures={"its logit": Value.of(at.changes[of.name]), BEYOND: beyond},
        depths={
            of.name: tuple(
                Point(depth=(layer.layer + 1) / shifts.of_layers, value=Value.of(layer.changes[of.name]))
                for layer in of.layers
            )
        },
    )
