"""Probes beside each other, and beside what their models answer when they are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from emovllm_offline.comparison.rows import Point, Row, Size, Value
from emovllm_offline.reading.compare import PROBE, ZERO_SHOT, Compared
from emovllm_offline.reading.results import LayerResult, Results

# Relative depths at which models of different depth are compared: the nearest layer's figure counts.
DEPTHS = (0.1, 0.25, 0.5, 0.75, 1.0)
ASKED, AHEAD = "zero-shot F1", "probe ahead by"
LINE = "macro F1"
# Of `probe compare`: what a teller does who knows how often each label is.
_ALWAYS = "always "


def rows(name: str, results: Results, size: Size | None) -> list[Row]:
    """One: the layer that was chosen on the dev texts, on the test texts."""
    best, data, reading = results.best, results.about["data"], results.about["reading"]
    return [
        Row(
            run=name,
            model=results.model,
            size=size,
            labels=results.labels,
            texts=data.get("test sha256", data["sha256"]),
            count=sum(data["texts"]["test"].values()),
            facts={
                "states": "chat" if reading["chat"] else reading["pooling"],
                "learnt from": str(sum(data["texts"]["train"].values())),
                "layer": f"{best.layer} of {len(results.layers)}",
                "depth": f"{best.depth:.2f}",
            },
            figures={
                "test F1": Value.of(best.test.f1),
                "shuffled labels": Value.of(best.test.control),
                "selectivity": Value.of(best.test.selectivity),
            },
            depths={LINE: tuple(_point(of) for of in results.layers)},
        )
    ]


def size_of(results: Results) -> Size:
    return Size.model_validate({"layers": len(results.layers), **results.about.get("size", {})})


def nearest(points: Sequence[Point], depth: float) -> Point:
    """The layer that is nearest to a relative depth, the first of two."""
    return min(points, key=lambda point: abs(point.depth - depth))


def compared_rows(name: str, compared: Compared, size: Size | None) -> list[Row]:
    """One: the probe, the model asked, and telling the most frequent label always."""
    probe, asked = compared.of(PROBE), compared.of(ZERO_SHOT)
    always = next(teller for teller in compared.tellers if teller.name.startswith(_ALWAYS))
    assert asked.ahead is not None
    assert asked.split is not None
    return [
        Row(
            run=name,
            model=compared.model,
            size=size,
            labels=tuple(compared.texts),
            texts=compared.about["data"]["sha256"],
            count=sum(compared.texts.values()),
            facts={
                "states": "chat" if compared.about["chat"] else compared.about["pooling"],
                "layer": str(compared.layer),
                "McNemar p": f"{asked.split.p:.1e}" if asked.split.p < 0.001 else f"{asked.split.p:.3f}",
            },
            figures={
                "probe F1": Value.of(probe.f1),
                ASKED: Value.of(asked.f1),
                AHEAD: Value.of(asked.ahead),
                "one label always": Value.of(always.f1),
                "probe accuracy": Value.of(probe.accuracy),
                "zero-shot accuracy": Value.of(asked.accuracy),
            },
        )
    ]


def beside_answers(
    rows: Sequence[Row], trained: Mapping[str, Results], compared: Mapping[str, Compared]
) -> tuple[list[Row], list[str]]:
    """rows: of the probes in `trained`, by their names; each with what its model answers, from the runs in `compared`
    that are of the same model: the difference of those alone that are of the same probe. And what to know of it."""
    if not compared:
        return list(rows), []
    joined, notes = [], []
    for row in rows:
        of_model = {name: of for name, of in compared.items() if of.model == row.model}
        same = {name: of for name, of in of_model.items() if of.digest == trained[row.run].digest}
        asked, ahead, said = _answered(same, of_model)
        joined.append(row.model_copy(update={"figures": {**row.figures, ASKED: asked, AHEAD: ahead}}))
        if said:
            notes.append(f"{row.run}: {said}")
    notes.append(
        f"{ASKED} and {AHEAD} are of the texts that probe compare was given, which need not be the test texts: what "
        "the probe reaches there stands in the table of probe compare."
    )
    return joined, notes


def _answered(
    same: Mapping[str, Compared], of_model: Mapping[str, Compared]
) -> tuple[Value | None, Value | None, str | None]:
    """What a model answers, by how much its probe is ahead, and what to know of it. same: the runs that are of this
    probe too."""
    candidates = same or of_model
    if len(candidates) > 1:
        told = ", ".join(candidates)
        return None, None, f"several runs of probe compare are of it ({told}): see their own table."
    for name, compared in candidates.items():
        teller = compared.of(ZERO_SHOT)
        if same and teller.ahead is not None:
            return Value.of(teller.f1), Value.of(teller.ahead), None
        said = f"the run {name} of probe compare is of another probe of this model: it has no difference to tell."
        return Value.of(teller.f1), None, said
    return None, None, None


def _point(of: LayerResult) -> Point:
    return Point(depth=of.depth, value=Value.of(of.test.f1))
