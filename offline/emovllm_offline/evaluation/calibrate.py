"""One calibration from its options to the circuit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import emovllm
from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit, replace_spec, save_circuit
from emovllm.errors import EvaluationError
from emovllm.files import write_atomically, write_json
from emovllm.spec import CircuitSpec, EmotionSpec, Scope
from emovllm_offline.data.messages import messages_digest, overlaps_test_set
from emovllm_offline.evaluation import figures
from emovllm_offline.evaluation.choice import Bounds, Choice, Point, best_scope, choose
from emovllm_offline.evaluation.evaluate import MakeJudges, collect
from emovllm_offline.evaluation.folder import Folder
from emovllm_offline.evaluation.plan import CIRCUITS, NONE, PROMPTING, Asked, plan, settings
from emovllm_offline.evaluation.scoring import score
from emovllm_offline.evaluation.summary import Cell, Condition, find, summarise
from emovllm_offline.evaluation.target import Where, find_target
from emovllm_offline.reporting import plots
from emovllm_offline.reporting.tables import Table

RESULT = "calibration.json"
FIGURE = "frontier.png"
SWEPT = "swept"  # the circuit as it is served meanwhile


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What was measured, what was chosen, and where.

    points: by scope and emotion. uncalibrated: emotions for which no strength will do.
    """

    scope: str
    points: Mapping[str, Mapping[str, Sequence[Point]]]
    choices: Mapping[str, Choice]
    scores: Mapping[str, Mapping[str, float]]
    uncalibrated: tuple[str, ...]


def calibrate(
    where: Where,
    asked: Asked,
    make_judges: MakeJudges,
    out: Path,
    *,
    bounds: Bounds = Bounds(),
    seed: int = 0,
    fresh: bool = False,
    command: str = "",
) -> Calibrated:
    """`emovllm calibrate`: sweeps lambda, chooses, and writes what it chose into the circuit.

    asked.strengths are lambdas, whatever the circuit recommends so far. An emotion that is not both within the bounds
    and above the false positives at any of them is left as it was.
    Raises: EvaluationError where the messages are of the test set; and as `evaluate`.
    """
    if overlaps_test_set(asked.messages):
        raise EvaluationError("these messages are of the test set, on which nothing may be tuned: give --data sev")
    if any(strength <= 0 for strength in asked.strengths):
        raise EvaluationError("strengths must be above 0")
    if where.circuit is None or not Path(where.circuit).is_dir():
        raise EvaluationError("--circuit must be a local folder: what is found is written into it")
    circuit = load_circuit(where.circuit)
    swept = _sweepable(circuit, asked.strengths)
    save_circuit(swept, out / SWEPT)
    target = find_target(replace(where, circuit=str(out / SWEPT)), steering=False)
    asked = replace(asked, methods=(NONE, PROMPTING, CIRCUITS))
    planned, emotions = plan(asked, target.served)
    (judge,) = make_judges(emotions)
    folder = Folder(out, settings(asked, planned, target.served), fresh)
    collect(where, target, planned, folder, asked.max_tokens, steering=False)
    cells = summarise(score(planned, folder, [judge], emotions), emotions, [judge.name], seed)
    made = choose_all(cells, emotions, judge.name, asked.strengths, asked.scopes, bounds)
    provenance = {
        **({"command": command} if command else {}),
        "emovllm": emovllm.__version__,
        "data": {"sha256": messages_digest(asked.messages), "messages": len(asked.messages)},
        "style": {"name": asked.style.name, "sha256": asked.style.digest()},
        "judge": {"name": judge.name, "sha256": _digest(judge.config)},
        "lambdas": list(asked.strengths),
        "max_tokens": asked.max_tokens,
        "bounds": asdict(bounds),
        "uncalibrated": list(made.uncalibrated),
    }
    _write(out, made, provenance, emotions, bounds)
    replace_spec(where.circuit, calibrated_spec(circuit.spec, made, provenance))
    return made


def choose_all(
    cells: Sequence[Cell],
    emotions: Sequence[str],
    judge: str,
    strengths: Sequence[float],
    scopes: Sequence[str],
    bounds: Bounds,
) -> Calibrated:
    """Raises: EvaluationError where an emotion's replies have no perplexity, all of them being empty."""
    points: dict[str, dict[str, list[Point]]] = {scope: {} for scope in scopes}
    choices: dict[str, dict[str, Choice]] = {scope: {} for scope in scopes}
    for scope in scopes:
        for emotion in emotions:
            found = [_cell(cells, Condition(CIRCUITS, strength, scope), emotion) for strength in strengths]
            points[scope][emotion] = [_point(cell, judge) for cell in found]
            unsteered = [_cell(cells, Condition(method, 0.0, ""), emotion) for method in (NONE, PROMPTING)]
            repetition = max(_value(cell.repetition) for cell in unsteered)
            mistaken = _value(unsteered[0].accuracy[judge])
            choices[scope][emotion] = choose(points[scope][emotion], repetition, bounds, mistaken)
    scope = best_scope(choices)
    scores = {}
    for emotion, choice in choices[scope].items():
        if choice.recommended is not None:
            cell = _cell(cells, Condition(CIRCUITS, choice.recommended.strength, scope), emotion)
            plain = _cell(cells, Condition(NONE, 0.0, ""), emotion)
            scores[emotion] = _scores(cell, plain, judge)
    uncalibrated = tuple(emotion for emotion, choice in choices[scope].items() if choice.recommended is None)
    return Calibrated(scope, points, choices[scope], scores, uncalibrated)


def calibrated_spec(spec: CircuitSpec, made: Calibrated, provenance: Mapping[str, Any]) -> CircuitSpec:
    """The circuit's spec with what was chosen."""

    def emotion(old: EmotionSpec) -> EmotionSpec:
        choice = made.choices.get(old.name)
        if choice is None or choice.recommended is None:
            return old
        return EmotionSpec(
            name=old.name,
            recommended=choice.recommended.strength,
            maximal=choice.maximal,
            scores=dict(made.scores[old.name]),
        )

    changes: dict[str, Any] = {
        "emotions": tuple(emotion(old) for old in spec.emotions),
        "provenance": {**spec.provenance, "calibration": dict(provenance)},
    }
    if made.scope:
        scope: Scope = made.scope  # type: ignore[assignment]
        changes["scope"] = scope
    return spec.model_copy(update=changes)


def table(made: Calibrated, judge: str) -> Table:
    """What was chosen."""
    head = [
        "emotion",
        "recommended lambda",
        "maximal lambda",
        f"accuracy, {judge}",
        "false positives",
        "fluency",
        "repetition",
    ]
    rows = []
    for emotion, choice in made.choices.items():
        if choice.recommended is None:
            rows.append([emotion, "none will do: left as it was", "-", "-", "-", "-", "-"])
            continue
        point, scores = choice.recommended, made.scores[emotion]
        rows.append(
            [
                emotion,
                f"{point.strength:g}",
                f"{choice.maximal:g}",
                f"{point.accuracy:.1%}",
                f"{scores['false_positives']:.1%}",
                f"{point.fluency:.2f}",
                f"{point.repetition:.1%}",
            ]
        )
    return Table(head, rows)


def _sweepable(circuit: Circuit, strengths: Sequence[float]) -> Circuit:
    """The circuit with lambda itself as the strength of a request, up to the largest of the sweep."""
    emotions = tuple(EmotionSpec(name=name, recommended=1.0, maximal=max(1.0, *strengths)) for name in circuit.names)
    spec = circuit.spec.model_copy(update={"emotions": emotions, "provenance": {}})
    return replace(circuit, spec=spec)


def _cell(cells: Sequence[Cell], condition: Condition, emotion: str) -> Cell:
    cell = find(cells, condition, emotion)
    assert cell is not None, "the plan has every condition"
    return cell


def _point(cell: Cell, judge: str) -> Point:
    return Point(
        cell.condition.strength,
        _value(cell.accuracy[judge]),
        _value(cell.fluency),
        _value(cell.repetition),
        cell.regimes["repetitive"],
    )


def _scores(cell: Cell, plain: Cell, judge: str) -> dict[str, float]:
    measured = {
        "accuracy": cell.accuracy[judge],
        "false_positives": plain.accuracy[judge],
        "fluency": cell.fluency,
        "perplexity": cell.perplexity,
        "repetition": cell.repetition,
        "relevance": cell.relevance,
    }
    return {name: round(estimate.value, 4) for name, estimate in measured.items() if estimate is not None}


def _value(estimate: Any) -> float:
    if estimate is None:
        raise EvaluationError(
            "an emotion has no reply that is not empty and was judged: there is nothing to calibrate by; give another "
            "--judge, or more messages"
        )
    return float(estimate.value)


def _digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(config), sort_keys=True).encode()).hexdigest()


def _write(out: Path, made: Calibrated, provenance: Mapping[str, Any], emotions: Sequence[str], bounds: Bounds) -> None:
    content = {**provenance, **asdict(made)}
    write_json(out / RESULT, content)
    drawn = figures.calibration(made.points[made.scope], made.choices, bounds)
    write_atomically(out / FIGURE, plots.png(drawn))
