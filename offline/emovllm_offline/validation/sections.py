"""The figures of a circuit's report, in their order, and what is said of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emovllm_offline.reporting.tables import Table
from emovllm_offline.validation import figures, sublayer_figures
from emovllm_offline.validation.results import Validation


@dataclass(frozen=True, slots=True)
class Section:
    """One figure: `draw` takes what `needs` names; `table` stands below it.

    has: whether the source has what is drawn; where it has not, the section is left out, or names the command that
    measures it `again`.
    """

    name: str
    title: str
    text: str
    needs: str
    draw: Callable[[Any], Any]
    table: Callable[[Any], Table] | None = None
    has: Callable[[Any], bool] = lambda source: True
    again: str | None = None


# What measures that which a section needs.
COMMANDS = {"findings": "emovllm discover", "validation": "emovllm validate"}


def sweep_table(validation: Validation, mode: str, kind: str) -> Table:
    """The numbers of a sweep: the change and, in brackets, that of random units, * where the intervals are apart."""
    curves = [figures.find_curve(validation, mode, kind, emotion) for emotion in validation.emotions]
    rows = []
    for curve, signal in zip(curves, validation.signal("mlp"), strict=True):
        apart = curve.separated()
        points = list(zip(curve.k, curve.mean, curve.random_mean, strict=True))[1:]
        cells = [f"{_number(change)} ({_number(control)}){'*' if k in apart else ''}" for k, change, control in points]
        rows.append([curve.emotion, _number(signal), *cells])
    return Table(["emotion", "own share", *(f"k = {k}" for k in curves[0].k[1:])], rows)


def _number(value: float) -> str:
    return str(round(value)) if abs(value) >= 10 else f"{value:.2g}"


def _sweep(mode: str, kind: str, text: str) -> Section:
    return Section(
        f"{mode}_{kind}",
        f"{mode.capitalize()} of {kind}",
        text,
        "validation",
        lambda validation: figures.sweep(validation, mode, kind),
        lambda validation: sweep_table(validation, mode, kind),
    )


_ABLATION = (
    "The top k {0} of every layer are zeroed at the last token of prompts that elicit the emotion. The score is "
    "the sum over layers of the projection of the residual after the MLP on the layer's direction of the emotion; "
    "its mean change against k = 0 is shown. Bands are 95% confidence intervals (Student's t): over scenarios for "
    "the chosen {0}, over seeds for random ones (grey). Where the chosen ones carry the emotion, their line is "
    "below the grey one. The dotted line is where the score would be without all that sets these prompts apart "
    "from the average emotion's. The {0} were chosen by what they add along the same directions: a fall of some "
    "size is to be expected, and a change far beyond the dotted line means that more than the emotion was "
    "destroyed."
)
_ENHANCEMENT = (
    "To the top k {0} of every layer, at the last token of prompts without an emotion, lambda times their "
    "difference vectors are added; the score is that of the ablation. Random {0} receive their own difference "
    "vectors: with all {0} of a layer the two lines meet. Where the chosen ones bring the emotion forth, their "
    "line is above the grey one. The dotted line is by how much prompts that elicit the emotion exceed those of "
    "the average emotion."
)

SECTIONS = (
    Section(
        "units",
        "Neurons and heads of the circuit",
        "How many units of each layer the circuit of each emotion acts on. The number of a layer follows its "
        "importance; every layer has a minimum.",
        "circuit",
        figures.units,
    ),
    Section(
        "overlap",
        "Overlap between emotions",
        "Units that two emotions share, over the units that either has (Jaccard index): 0 for none in common, "
        "1 for the same. Low values off the diagonal mean that the emotions use different units.",
        "circuit",
        figures.overlap,
    ),
    Section(
        "importance",
        "Importance of the sublayers",
        "How far a push along the emotion's direction right after one sublayer moves the model's final state "
        "along the emotion's late direction, divided by the size of the push. Higher: what is written there "
        "reaches the output; 0: it is lost; below 0: it is turned around.",
        "findings",
        sublayer_figures.importance,
    ),
    Section(
        "importance_by_alpha",
        "Importance by the size of the push",
        "The importance above is the mean of several sizes of the push: alpha times the root mean square of the "
        "residual after the sublayer. Here each has a line, over the sublayers in their order (A: after attention, "
        "between two of them M: after the MLP). Lines that lie together mean that the final state moves in "
        "proportion to the push; where they part, the importance is of that size alone.",
        "findings",
        sublayer_figures.importance_by_alpha,
        has=lambda findings: findings.importance_by_alpha is not None,
    ),
    Section(
        "similarity",
        "Directions across sublayers",
        "Cosine between the emotion directions of every two sublayers, averaged over the emotions. A block "
        "near 1 is a stretch of layers that represent emotions alike; the reference direction comes from such "
        "a band of late layers.",
        "findings",
        sublayer_figures.similarity,
    ),
    Section(
        "similarity_by_emotion",
        "Directions across sublayers, by emotion",
        "The same cosines of each emotion by itself. Where an emotion's block of late layers begins later than the "
        "others', or falls into two, the mean above hides it.",
        "findings",
        sublayer_figures.similarity_by_emotion,
    ),
    Section(
        "components",
        "Principal components of the hidden states",
        "Each point is one prompt that elicits an emotion: the state after a layer's MLP, at the tokens that "
        "discovery reads, on the two directions in which the states of that layer vary most. Clusters of one "
        "colour mean that the layer tells the emotions apart; prompts also differ in their wording, which "
        "makes clusters of its own.",
        "validation",
        figures.components,
    ),
    Section(
        "probe",
        "Linear probe",
        "How well a linear classifier (ridge regression) names the emotion from the state after each layer's "
        "MLP. Cross-validated: it has seen neither the scenario nor, where the style has several, the wording "
        "of a prompt that it judges. F1 is 1 when all is right. Replies that the style puts into the model's "
        "mouth make it easy in every layer: emotions have words of their own. Right: the share of the variance "
        "on the first three principal components.",
        "validation",
        figures.probe,
    ),
    _sweep("ablation", "neurons", _ABLATION.format("neurons")),
    _sweep("ablation", "heads", _ABLATION.format("heads")),
    _sweep("enhancement", "neurons", _ENHANCEMENT.format("neurons")),
    _sweep("enhancement", "heads", _ENHANCEMENT.format("heads")),
)
