"""The card of a circuit with what was measured of it: how well it steers, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from emovllm.card import model_card
from emovllm.circuit import Circuit
from emovllm.errors import ResultsError
from emovllm_offline.evaluation import tables
from emovllm_offline.evaluation.results import Summary
from emovllm_offline.evaluation.side_effects import SideEffects
from emovllm_offline.evaluation.side_effects_report import NOT_COMPLYING, TO_DECLINE, overview
from emovllm_offline.evaluation.side_effects_report import summary as said_of_side_effects
from emovllm_offline.judges.judge import READOUT

_UNREAD = "Judged means by a program or a model: that people read it as the emotion is not said by it."
_NO_EVALUATION = "How well it steers was not measured: `emovllm evaluate` does."
_NO_SIDE_EFFECTS = "What it does to sums, facts, formats and refusals was not measured: `emovllm side-effects` does."
_FEW = "Of the side effects, few items tell large changes alone, and a rule that reads English wording checks them."
_NEVER = "Nothing here tells of other languages, longer replies, or other weights than those that were measured."


def measured_card(
    circuit: Circuit, at: str, summary: Summary | None, found: SideEffects | None, *, probe: bool = False
) -> str:
    """at: what `--circuit` is given. probe: whether one lies beside it.

    Raises: ResultsError where the results are of another circuit.
    """
    for what, of in (("evaluation is", summary), ("side effects are", found)):
        if of is not None and of.circuit != circuit.digest():
            raise ResultsError(f"the {what} of another circuit, {of.circuit[:12]}; this is {circuit.digest()[:12]}")
    limits = [
        _NO_EVALUATION if summary is None else _UNREAD,
        _NO_SIDE_EFFECTS if found is None else _FEW,
        _NEVER,
    ]
    measured = [
        *([] if summary is None else _steers(circuit, summary)),
        *([] if found is None else _costs(found)),
    ]
    return model_card(circuit, at, probe=probe, measured=measured, limits=limits)


def _steers(circuit: Circuit, summary: Summary) -> Iterator[str]:
    emotions = summary.settings["emotions"]
    yield "## How well it steers"
    yield (
        f"{summary.model}, on {summary.settings['messages']['count']} messages, replies of at most "
        f"{summary.settings['decoding']['max_tokens']} tokens, by method and strength, in percent with 95% intervals "
        "over groups of messages; `none`: plain replies that are taken for the emotion."
    )
    for judge in summary.judges:
        yield f"By the {'read-out of the states' if judge == READOUT else f'judge {judge}'}{_chose(circuit, judge)}:"
        yield tables.by_emotion(summary.cells, judge, emotions).markdown().strip()
    yield "Perplexity over that of the reply that a prompt gets when it asks for the emotion, and repeated 3-grams:"
    yield tables.fluency_by_emotion(summary.cells, emotions).markdown().strip()
    if summary.command:
        yield f"Measured by `{summary.command}`, emovllm {summary.emovllm}."


def _chose(circuit: Circuit, judge: str) -> str:
    calibration: Any = circuit.spec.provenance.get("calibration")
    by: Any = calibration.get("judge") if isinstance(calibration, dict) else None
    return ", which chose the strengths too" if isinstance(by, dict) and by.get("name") == judge else ""


def _costs(found: SideEffects) -> Iterator[str]:
    yield "## Side effects"
    yield said_of_side_effects(found)
    yield overview(found).markdown().strip()
    yield (
        f"{TO_DECLINE} {NOT_COMPLYING} {found.model}, over all emotions; 95% intervals over items. A star: "
        "the change from the plain replies to the same items is beside 0."
    )
    if found.command:
        yield f"Measured by `{found.command}`, emovllm {found.emovllm}."
