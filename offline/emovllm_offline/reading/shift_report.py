"""The report of `emovllm probe prompts`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emovllm_offline.data.system_prompts import NONE
from emovllm_offline.reading.document import Section, flat, write_document
from emovllm_offline.reading.report import FEW
from emovllm_offline.reading.results import Figure
from emovllm_offline.reading.shift import Shifts
from emovllm_offline.reporting import plots
from emovllm_offline.reporting.tables import Table

READ = {
    "reply": "the prompt's last token, at which the reply begins",
    "text": "the message's own tokens, pooled as those of the probe's texts",
}


def write_report(shifts: Shifts, out: Path) -> None:
    """Raises: OSError."""
    title = f"What system prompts change in {shifts.model}"
    write_document(title, summary(shifts), list(_notes(shifts)), list(_sections(shifts)), out)
    shifts.save(out)


def summary(shifts: Shifts) -> str:
    """What there is to say in a line or two."""
    rises = [of.at(shifts.layer).changes[of.name] for of in shifts.named]
    up = sum(rise.low > 0 for rise in rises)
    apart = [of.at(shifts.layer).beyond for of in shifts.named]
    more = sum(beyond is not None and beyond.low > 0 for beyond in apart)
    mean = sum(rise.value for rise in rises) / len(rises)
    return (
        f"{shifts.texts} messages below {len(shifts.prompts)} system prompts, read at layer {shifts.layer} of "
        f"{shifts.of_layers}: the logit of the emotion that a prompt names changes by {mean:+.3f} on average, and "
        f"rises below {up} of {len(rises)} prompts; more than below those that name another, below {more}."
    )


def named_table(shifts: Shifts) -> Table:
    """Of the prompts that name an emotion, that emotion at the probe's own layer."""
    rows = []
    for of in shifts.named:
        at = of.at(shifts.layer)
        assert of.probability is not None
        assert of.leads is not None
        beyond = "-" if at.beyond is None else signed(at.beyond)
        shares = [f"{before:.3f} to {after:.3f}" for before, after in (of.probability, of.leads)]
        rows.append([of.name, signed(at.changes[of.name]), beyond, *shares])
    return Table(["prompt", "its logit", "beyond other prompts", "probability", "share where it leads"], rows)


def matrix_table(shifts: Shifts) -> Table:
    """Every label below every prompt, at the probe's own layer."""
    rows = [
        [of.name, *(signed(of.at(shifts.layer).changes[label]) for label in shifts.labels)] for of in shifts.prompts
    ]
    return Table(["prompt \\ logit of", *shifts.labels], rows)


def layer_table(shifts: Shifts) -> Table:
    """The change of the named emotion's logit, layer by layer."""
    rows = [
        [
            f"{layer}{' *' if layer == shifts.layer else ''}",
            f"{(layer + 1) / shifts.of_layers:.2f}",
            *(signed(of.at(layer).changes[of.name]) for of in shifts.named),
        ]
        for layer in (at.layer for at in shifts.prompts[0].layers)
    ]
    return Table(["layer", "depth", *(of.name for of in shifts.named)], rows)


def signed(figure: Figure) -> str:
    return f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"


def depth_figure(shifts: Shifts) -> Any:
    """The change of the named emotion's logit over relative depth, with intervals."""
    depth = [(at.layer + 1) / shifts.of_layers for at in shifts.prompts[0].layers]
    with plots.figure(4.6) as drawing:
        axes = drawing.subplots()
        for place, of in enumerate(shifts.named):
            figures = [at.changes[of.name] for at in of.layers]
            low, high = [figure.low for figure in figures], [figure.high for figure in figures]
            colour = plots.colour(place)
            axes.plot(
                depth, [figure.value for figure in figures], color=colour, marker=plots.marker(place), markersize=4
            )
            axes.fill_between(depth, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.axhline(0, color=plots.GREY, linewidth=0.8)
        axes.set(xlabel="relative depth (1: after the last layer)", ylabel="change of the named emotion's logit")
        plots.legend(drawing, [of.name for of in shifts.named])
    return drawing


def _sections(shifts: Shifts) -> Iterator[Section]:
    yield Section(
        "The emotion that is named",
        f"Layer {shifts.layer}, the probe's own. Its logit: the mean change against the same message without a system "
        "prompt, with a 95% interval of a bootstrap over groups of messages. Beyond other prompts: by how much it "
        "rises more than below the prompts that name another emotion, message by message. Probability, and the share "
        "of messages where it is the likeliest label: without the prompt, and with it.",
        named_table(shifts),
    )
    yield Section(
        "Over depth",
        "The change of the named emotion's logit, layer by layer; * is the probe's own.",
        layer_table(shifts),
        plots.data_uri(plots.png(depth_figure(shifts))),
    )
    yield Section(
        "Every label",
        f"Layer {shifts.layer}: rows are the prompts, columns the labels whose logits change.",
        matrix_table(shifts),
    )
    prompts = [(NONE, "(no system message)"), *((of.name, of.text) for of in shifts.prompts)]
    yield Section("The prompts", "Word for word.", Table(["name", "prompt"], prompts))
    settings = [("probe's digest", shifts.digest[:16]), ("read at", READ[shifts.at]), *flat(shifts.about)]
    yield Section("Settings", "What it was made of.", Table(["what", "value"], settings))


def _notes(shifts: Shifts) -> Iterator[str]:
    """What a reader must know before trusting the figures."""
    yield (
        "Logits are those of each layer's probe, less their mean over the labels; layers have probes of different "
        f"sharpness, so their sizes compare within a layer. Read at {READ[shifts.at]}. Without a system prompt a chat "
        "template may put one of its own there."
    )
    if shifts.groups < FEW:
        yield f"The messages are of {shifts.groups} groups alone: the figures are a first look."
    for reason, count in shifts.about["data"]["left out"].items():
        yield f"Left out: {count} texts ({reason})."
