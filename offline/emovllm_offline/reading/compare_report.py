"""The report of `emovllm probe compare`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from emovllm_offline.reading.compare import PROBE, ZERO_SHOT, Compared, Teller
from emovllm_offline.reading.document import Section, flat, write_document
from emovllm_offline.reading.report import FEW
from emovllm_offline.reading.results import Figure
from emovllm_offline.reporting import plots
from emovllm_offline.reporting.tables import Table


def write_report(compared: Compared, question: Table, out: Path) -> None:
    """question: what the model was asked. Raises: OSError."""
    title = f"Probe and zero-shot answers of {compared.model}"
    write_document(title, summary(compared), list(_notes(compared)), list(_sections(compared, question)), out)
    compared.save(out)


def summary(compared: Compared) -> str:
    """What there is to say in a line or two."""
    asked = compared.of(ZERO_SHOT)
    assert asked.ahead is not None
    assert asked.split is not None
    return (
        f"{sum(compared.texts.values())} texts, {len(compared.texts)} labels: macro F1 {compared.of(PROBE).f1} of the "
        f"probe at layer {compared.layer}, {asked.f1} of the model asked; the probe is ahead by {asked.ahead}. The "
        f"probe alone is right on {asked.split.probe} texts, the answer alone on {asked.split.other} "
        f"(McNemar's exact p = {_p(asked.split.p)})."
    )


def teller_table(compared: Compared) -> Table:
    head = ["", "macro F1", "accuracy", "probe ahead by", "probe alone right", "it alone right", "McNemar p"]
    return Table(head, [_row(teller) for teller in compared.tellers])


def _row(teller: Teller) -> list[str]:
    if teller.ahead is None or teller.split is None:
        return [teller.name, str(teller.f1), str(teller.accuracy), "-", "-", "-", "-"]
    split = teller.split
    counts = [str(split.probe), str(split.other), _p(split.p)]
    return [teller.name, str(teller.f1), str(teller.accuracy), str(teller.ahead), *counts]


def _p(p: float) -> str:
    return f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def label_table(compared: Compared) -> Table:
    """F1 of each label by the probe and by the model asked."""
    tellers = [compared.of(PROBE), compared.of(ZERO_SHOT)]
    rows = [
        [label, str(texts), *("-" if (one := teller.by_label[label]) is None else str(one) for teller in tellers)]
        for label, texts in compared.texts.items()
    ]
    return Table(["label", "texts", *(f"F1, {teller.name}" for teller in tellers)], rows)


def label_figure(compared: Compared) -> Any:
    """F1 of each label by both, beside each other, with intervals."""
    labels = list(compared.texts)
    with plots.figure(4.2) as drawing:
        axes = drawing.subplots()
        for place, name in enumerate((PROBE, ZERO_SHOT)):
            figures = [one or Figure(value=0, low=0, high=0) for one in map(compared.of(name).by_label.get, labels)]
            values = np.array([one.value for one in figures])
            # A bootstrap's interval need not hold the value itself.
            below = np.maximum(values - [one.low for one in figures], 0)
            above = np.maximum([one.high for one in figures] - values, 0)
            at = np.arange(len(labels)) + 0.4 * place - 0.2
            axes.bar(at, values, 0.38, yerr=[below, above], color=plots.colour(place), ecolor=plots.GREY, label=name)
        axes.set_xticks(range(len(labels)), labels)
        axes.set(ylabel="F1", ylim=(0, 1))
        axes.legend(frameon=False)
    return drawing


def _sections(compared: Compared, question: Table) -> Iterator[Section]:
    yield Section(
        "Both",
        "Macro F1 is the mean of the labels' F1, each label counting alike. In brackets 95% intervals, of a bootstrap "
        "over groups of texts; the difference is over the same resamples. Zero-shot: the model is asked which label "
        "fits, with the labels listed in both directions, and the likeliest answer counts, after what each label gets "
        "where there is nothing to judge was taken off; below it the same without that, and with one direction alone. "
        f"Of {compared.equal:.0%} of the texts both directions tell the same.",
        teller_table(compared),
    )
    yield Section(
        "Each label",
        f"F1 of each label, of the probe at layer {compared.layer} and of the model asked.",
        label_table(compared),
        plots.data_uri(plots.png(label_figure(compared))),
    )
    yield Section("The question", "The likelihoods of these answers were compared.", question)
    settings = [("probe's digest", compared.digest[:16]), *flat(compared.about)]
    yield Section("Settings", "What it was made of.", Table(["what", "value"], settings))


def _notes(compared: Compared) -> Iterator[str]:
    """What a reader must know before trusting the figures."""
    yield (
        "The probe learnt from labelled texts; the model was told the labels' names alone. Texts that the probe learnt "
        "from would flatter it."
    )
    texts = sum(compared.texts.values())
    if compared.groups < texts:
        yield f"The texts are of {compared.groups} groups; McNemar's test takes each of the {texts} for independent."
    if few := [f"{label} ({count})" for label, count in compared.texts.items() if count < FEW]:
        yield f"Few texts: {', '.join(few)}. Their figures are a first look."
    for reason, count in compared.about["data"]["left out"].items():
        yield f"Left out: {count} texts ({reason})."
