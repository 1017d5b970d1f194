"""What a build found: of each emotion, how well it shows, at what cost, and what to do where it does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emovllm.circuit import Circuit
from emovllm.errors import ResultsError
from emovllm.files import read_text
from emovllm_offline.building.folder import Build, circuit_in
from emovllm_offline.building.obeyed import Obedience
from emovllm_offline.evaluation.calibrate import RESULT
from emovllm_offline.evaluation.choice import ENOUGH
from emovllm_offline.evaluation.plan import CIRCUITS, NONE, PROMPTING
from emovllm_offline.evaluation.results import Summary
from emovllm_offline.evaluation.summary import Cell, Condition, find
from emovllm_offline.evaluation.tables import number, percent
from emovllm_offline.intervals import Estimate
from emovllm_offline.judges.judge import READOUT
from emovllm_offline.reporting.tables import Table

STEERED, PROMPTED, PLAIN = Condition(CIRCUITS, 1.0, ""), Condition(PROMPTING, 0.0, ""), Condition(NONE, 0.0, "")


@dataclass(frozen=True, slots=True)
class Shown:
    """How well one emotion shows in replies to messages that nothing was learnt from or chosen by.

    shown: by the judge, with Wilson's interval; None where it judged none. chooser, chosen: the judge that chose the
    strengths, which may be the same, and what it says. chance: what a blind guess among the emotions and none gives, or
    the plain replies taken for it, whichever is more. prompted: asked for by a prompt. felt: by the probe. fluency,
    repetition: what it costs. stronger: a strength at which calibration found it in half of the replies or more, past
    the bounds; None where there is none.
    """

    emotion: str
    judge: str
    shown: Estimate | None
    chooser: str
    chosen: Estimate | None
    chance: float
    prompted: Estimate | None
    felt: Estimate | None
    fluency: Estimate | None
    repetition: Estimate | None
    calibrated: bool
    stronger: float | None

    @property
    def shows(self) -> bool:
        """Whether it does beyond chance: the whole interval lies above."""
        return self.shown is not None and self.shown.low > self.chance

    @property
    def apart(self) -> bool:
        """Whether another judge chose than the one by which it is told."""
        return self.chooser != self.judge

    def told(self) -> str:
        """In a sentence, with its interval and chance."""
        by = f"; {self.chosen.value:.0%} by {self.chooser}, which chose" if self.apart and self.chosen else ""
        if self.shown is None:
            return f"{self.emotion}: the judge {self.judge} could judge no reply{by}"
        how = "shows" if self.shows else "does not show beyond chance"
        return (
            f"{self.emotion} {how}: {self.shown.value:.0%} of {self.shown.count} replies by the judge {self.judge}, "
            f"95% interval {self.shown.low:.0%} to {self.shown.high:.0%} (Wilson); chance {self.chance:.0%}{by}"
        )


def shown(build: Build) -> list[Shown]:
    """Of what the evaluation left. Raises: ResultsError."""
    place = build.place / "evaluate" / "run"
    summary, circuit = Summary.load(place), circuit_in(build.served)
    assert circuit is not None
    stronger = strengths_beyond(build.served.parent, circuit)
    judges = [name for name in summary.judges if name != READOUT]
    if lacking := [name for name in circuit.names if find(summary.cells, STEERED, name) is None]:
        raise ResultsError(f"{place}: has no replies in {', '.join(lacking)}; start anew with --fresh")
    return [_shown(name, judges, summary.cells, circuit, stronger.get(name)) for name in circuit.names]


def _shown(name: str, judges: Sequence[str], cells: Sequence[Cell], circuit: Circuit, stronger: float | None) -> Shown:
    """judges: in the order in which they were given."""
    chooser, judge = judges[0], judges[-1]
    steered, prompted, plain = (find(cells, condition, name) for condition in (STEERED, PROMPTED, PLAIN))
    assert steered is not None
    assert plain is not None, "every evaluation of a build has plain replies"
    mistaken = plain.accuracy[judge]
    return Shown(
        name,
        judge,
        steered.accuracy[judge],
        chooser,
        steered.accuracy[chooser],
        max(1 / (len(circuit.names) + 1), mistaken.value if mistaken else 0.0),
        prompted.accuracy[judge] if prompted else None,
        steered.accuracy.get(READOUT),
        steered.fluency,
        steered.repetition,
        name not in circuit.spec.provenance["calibration"]["uncalibrated"],
        stronger,
    )


def strengths_beyond(place: Path, circuit: Circuit) -> dict[str, float]:
    """By emotion, the `emotion_strength` of the most accurate lambda that the circuit's cap allows and that is more
    than recommended, where it showed the emotion in half of the replies or more.

    place: of the calibration. Raises: ResultsError.
    """
    content: dict[str, Any] = _json(place / "run" / RESULT)
    found = {}
    for emotion in circuit.spec.emotions:
        points = content["points"][content["scope"]][emotion.name]
        more = [
            point
            for point in points
            if emotion.recommended < point["strength"] <= emotion.maximal and point["accuracy"] >= ENOUGH
        ]
        if more:
            best = max(more, key=lambda point: point["accuracy"])
            found[emotion.name] = best["strength"] / emotion.recommended
    return found


def advice(of: Shown, build: Build, obeyed: Obedience | None) -> list[str]:
    """What to do about an emotion that does not show, what costs least first."""
    inputs, told = build.inputs, []
    more = "" if inputs.settings.effort == "thorough" else ", or --effort thorough"
    if of.stronger is not None:
        told.append(
            f"ask for more: at strength {of.stronger:.2g} calibration found it in half of the replies or more, at a "
            f'worse fluency or repetition ("emotion_strength": {of.stronger:.2g})'
        )
    elif not of.calibrated:
        told.append(
            "no strength kept its bounds: `emovllm calibrate` with other --strengths, or a looser --most-fluency, "
            "finds one where there is one"
        )
    if of.felt is not None and of.felt.low > of.chance:
        told.append(
            "the probe reads it in the states that wrote the replies: look at the replies, and judge them by another "
            "--judge, before you change the circuit"
        )
    if not build.pays(build.refined):
        told.append(f"refine it: more replies to learn from (--replies FILE{more}), `emovllm refine`")
    else:
        told.append(f"refine it further: `emovllm refine` with more --epochs{more}")
    if obeyed is None or of.emotion not in obeyed.obeyed:
        told.append(
            f"another style: {_asked(obeyed, of.emotion)}; --emotions FILE with prompts, or replies, of your own"
            if inputs.styles
            else "a style that asks for it (--emotions FILE): this one holds replies alone"
        )
    if of.shown is not None and of.shown.value > of.chance:
        told.append(f"measure more: {of.shown.count} replies leave a wide interval: `emovllm evaluate`{more}")
    return told


def _asked(obeyed: Obedience | None, emotion: str) -> str:
    share = None if obeyed is None else obeyed.shares.get(emotion)
    if obeyed is None or share is None:
        return "the model was not seen to obey when asked"
    return f"asked in the style {obeyed.style} it obeyed in {share.value:.0%} of {share.count} replies"


def table(found: Sequence[Shown], circuit: Circuit) -> Table:
    """A row for each emotion, the weakest first. lambda: what strength 1 stands for."""
    recommended = {emotion.name: emotion.recommended for emotion in circuit.spec.emotions}
    judge, chooser, apart = found[0].judge, found[0].chooser, found[0].apart
    felt = any(one.felt for one in found)
    shares = [f"shown, {judge}", *([f"{chooser}, which chose"] if apart else [])]
    head = ["emotion", *shares, "chance", "asked by a prompt", *(["felt"] if felt else [])]
    ordered = sorted(found, key=lambda one: one.shown.value if one.shown else -1.0)
    return Table(
        [*head, "fluency", "repetition", "lambda"],
        [
            [
                one.emotion,
                percent(one.shown),
                *([percent(one.chosen)] if apart else []),
                f"{100 * one.chance:.0f}",
                percent(one.prompted),
                *([percent(one.felt)] if felt else []),
                number(one.fluency),
                percent(one.repetition),
                f"{recommended[one.emotion]:g}" + ("" if one.calibrated else ", not calibrated"),
            ]
            for one in ordered
        ],
    )


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(read_text(path, ResultsError)))
