"""The report of `emovllm probe persist`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emovllm_offline.reading.document import Section, flat, write_document
from emovllm_offline.reading.lasted import BAND, AtToken, Lasted, Persistence
from emovllm_offline.reading.persistence import WINDOW
from emovllm_offline.reading.report import FEW
from emovllm_offline.reading.shift_report import signed
from emovllm_offline.reporting import plots
from emovllm_offline.reporting.tables import Table

_PERCENT = " to ".join(f"{100 * share:.0f}" for share in BAND)


def write_report(lasted: Persistence, out: Path) -> None:
    """Raises: OSError."""
    title = f"How long emotions can be read in replies of {lasted.model}"
    write_document(title, summary(lasted), list(_notes(lasted)), list(_sections(lasted)), out)
    lasted.save(out)


def summary(lasted: Persistence) -> str:
    """What there is to say in a line or two."""
    told = [
        f"{of.name}: {_excess(of.tokens[0])}, {_excess(of.tokens[-1])}, half-life {_life(of)}"
        for of in lasted.conditions
    ]
    return (
        f"{sum(lasted.messages.values())} messages, replies of {lasted.length} tokens, read at layer {lasted.layer} of "
        f"{lasted.of_layers}; the probability of the opening's emotion above its control. {'; '.join(told)}."
    )


def _excess(at: AtToken) -> str:
    return f"{signed(at.excess)} at token {at.token}"


def _life(of: Lasted) -> str:
    return "none (no excess to begin with)" if of.half_life is None else str(of.half_life)


def token_table(lasted: Persistence) -> Table:
    """Each condition at the tokens that were asked for."""
    head = ["condition", "token", "median", f"{_PERCENT}%", "mean", "control", "excess", "not ended", "their excess"]
    rows = [
        [
            of.name,
            f"{at.token}",
            f"{at.median:.3f}",
            f"{at.low:.3f} to {at.high:.3f}",
            str(at.mean),
            str(at.control),
            signed(at.excess),
            f"{at.going}",
            _going(at),
        ]
        for of in lasted.conditions
        for at in of.tokens
    ]
    return Table(head, rows)


def _going(at: AtToken) -> str:
    return "-" if at.going_mean is None or at.going_control is None else f"{at.going_mean - at.going_control:+.3f}"


def life_table(lasted: Persistence) -> Table:
    rows = [
        [of.name, f"{of.replies}", f"{of.groups}", f"{of.ended:.0%}", f"{of.begin}", signed(of.at_begin), _life(of)]
        for of in lasted.conditions
    ]
    head = ["condition", "replies", "groups", "would have ended", "from token", "excess there", "half-life in tokens"]
    return Table(head, rows)


def label_table(lasted: Persistence) -> Table:
    """The mean and its control for each opening."""
    rows = [
        [
            of.name,
            one.label,
            f"{one.replies}",
            *(f"{m:.3f} / {c:.3f}" for m, c in zip(one.means, one.controls, strict=True)),
        ]
        for of in lasted.conditions
        for one in of.by_label
    ]
    return Table(["condition", "opening", "replies", *(f"{at.token}" for at in lasted.conditions[0].tokens)], rows)


def curve_figure(lasted: Persistence) -> Any:
    """Median, band, mean and control over the tokens, a panel for each condition."""
    rows = -(-len(lasted.conditions) // plots.COLUMNS)
    steps = range(1, lasted.length + 1)
    with plots.figure(3.0 * rows + 0.6) as drawing:
        for place, (axes, of) in enumerate(
            zip(plots.panels(drawing, len(lasted.conditions), sharey=True), lasted.conditions, strict=True)
        ):
            colour = plots.colour(place)
            axes.fill_between(steps, of.curve.low, of.curve.high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(steps, of.curve.median, color=colour, linewidth=1.6, label="median")
            axes.plot(steps, of.curve.mean, color="black", linewidth=0.9, linestyle="--", label="mean")
            axes.plot(steps, of.curve.control, color=plots.GREY, linewidth=0.9, linestyle=":", label="control")
            if of.off_after is not None:
                axes.axvline(of.off_after, color=plots.GREY, linewidth=0.8)
            axes.set(title=of.name, xlabel="token of the reply", ylim=(0, 1))
            axes.set_xscale("log")
            axes.set_xticks([at.token for at in of.tokens], [f"{at.token}" for at in of.tokens])
            axes.minorticks_off()
            axes.set_xlim(1, max(lasted.length, 2))
            axes.legend(frameon=False, fontsize=8)
        drawing.supylabel("probability of the opening's emotion", fontsize=10)
    return drawing


def _sections(lasted: Persistence) -> Iterator[Section]:
    yield Section(
        "Over the reply",
        "The probability of the opening's emotion in the state that wrote each token; the first is the prompt's last. "
        f"Median and {_PERCENT}% are over replies; mean, control and excess (the mean above its control) have 95% "
        "intervals of a bootstrap over groups of messages. Not ended: the replies that the model had not ended by "
        "itself before that token, nor the one that each is compared with, and their excess alone. In the figure the "
        "band holds the same share of the replies; a vertical line is where the emotion was taken off.",
        token_table(lasted),
        plots.data_uri(plots.png(curve_figure(lasted))),
    )
    yield Section(
        "Half-lives",
        "After how many tokens the excess is at most half of what it was at the token that is named, in the mean over "
        f"the {WINDOW} tokens from then on. None where that interval reaches 0: then there is nothing to halve.",
        life_table(lasted),
    )
    yield Section(
        "By emotion",
        "Mean probability / control at each token, for each emotion that replies open with.",
        label_table(lasted),
    )
    settings = [("probe's digest", lasted.digest[:16]), ("circuit's digest", (lasted.circuit or "none")[:16])]
    counts = [(f"messages.{name}", f"{count}") for name, count in lasted.messages.items()]
    yield Section(
        "Settings",
        "What it was made of.",
        Table(["what", "value"], [*settings, *counts, *flat(lasted.about)]),
    )


def _notes(lasted: Persistence) -> Iterator[str]:
    """What a reader must know before trusting the figures."""
    names = {of.name for of in lasted.conditions}
    if "unsteered" in names:
        yield (
            "unsteered: the plain model's replies to messages that have an emotion. The opening is the message's; the "
            "control is the mean probability of the same label, at the same token, in replies to messages with other "
            "labels."
        )
    if names - {"unsteered"}:
        yield (
            "With the circuit each message is answered in one emotion, dealt in turn, the same in every condition. The "
            "control is the plain reply to the same message. The circuit may write to what the probe reads: while the "
            "emotion is on, what is read tells first that it arrived; from where it is off, what the reply has kept."
        )
    yield (
        f"Every reply goes on for {lasted.length} tokens: where the model would have ended one, the end was not to be "
        "had, so that all tokens are read in the same replies; those that last are others than those that end. What "
        "follows an end is not what a user would see, and often repeats itself: not ended tells how many were still "
        "their own."
    )
    if lasted.about["pooling"] == "mean":
        yield "The probe was trained on the mean over a text's tokens, and reads single ones here."
    if any(of.groups < FEW for of in lasted.conditions):
        least = min(of.groups for of in lasted.conditions)
        yield f"There are conditions of {least} groups of messages alone: the figures are a first look."
    for reason, count in lasted.about["data"]["left out"].items():
        yield f"Left out: {count} texts ({reason})."
