"""The functions of notebooks that serve a model, against a server that answers by rule."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from emovllm import load_circuit
from emovllm.errors import CircuitError, EvaluationError, JudgeError, ModelError
from emovllm_offline import calibrate, evaluate, measure_side_effects
from emovllm_offline.api import CalibrationSettings, EvaluationSettings, Server
from emovllm_offline.evaluation.choice import Bounds
from emovllm_offline.judges.judge import Judge, Verdict
from emovllm_offline.judges.lexicon import LexiconJudge
from emovllm_offline.reporting import plots
from support.circuits import random_circuit
from support.evaluated import DIGEST, EMOTIONS, READING, pages, serve_by
from support.models import tiny_model
from support.stub import Stub

pytestmark = pytest.mark.usefixtures("quick")

RENDER = plots.png
FEW = EvaluationSettings(methods=("none", "prompting", "circuits"), paper_way=0)


@pytest.fixture
def stub(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Stub:
    serve_by(stub, monkeypatch)
    return stub


@pytest.fixture
def rendered(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "png", RENDER)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture
def circuit(model: str, tmp_path: Path) -> Path:
    return random_circuit(model, tmp_path / "circuit", names=EMOTIONS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"user": "The bus came early.", "valence": "good"}\n{"user": "It came late.", "valence": "bad"}\n')
    return path


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_circuit_is_evaluated_from_its_folder_or_from_memory(
    stub: Stub, model: str, circuit: Path, data: Path, tmp_path: Path, in_memory: bool
) -> None:
    given = load_circuit(circuit) if in_memory else circuit
    evaluation = evaluate(given, model, out=tmp_path / "out", data=data, judges="lexicon", settings=FEW)
    rows = {(row["method"], row["strength"]): row for row in evaluation.table()}
    assert list(rows) == [("none", 0), ("prompting", 0), ("circuits", 0.75), ("circuits", 1)]
    assert [row["accuracy, lexicon"] for row in rows.values()] == [0, 1, 1, 1]
    assert rows["circuits", 1]["fluency"] == pytest.approx(1)
    assert evaluation.page.read_text().count("data:image/png") == 2
    # Of what cannot be seen in an engine that is none: the circuit that was to be served.
    assert load_circuit(circuit).digest() in (tmp_path / "out" / "summary.json").read_text()


def test_tables_are_of_methods_emotions_or_valences(
    stub: Stub, model: str, data: Path, tmp_path: Path, rendered: None
) -> None:
    evaluation = evaluate(
        model=Server(stub.url), out=tmp_path, data=data, judges="lexicon", strengths=(1,), settings=FEW
    )
    emotions = [(row["method"], row["emotion"]) for row in evaluation.table("emotion")]
    assert emotions == [(method, emotion) for method in FEW.methods for emotion in EMOTIONS]
    assert {row["valence"] for row in evaluation.table("valence")} == {"good", "bad"}
    both = [(row["method"], row["emotion"], row["valence"]) for row in evaluation.table("emotion and valence")]
    assert both == [(*row, valence) for row in emotions for valence in ("good", "bad")]
    rows = [*evaluation.table(), *evaluation.table("emotion"), *evaluation.table("valence")]
    assert {type(value) for row in rows for value in row.values()} <= {str, int, float, type(None)}
    assert evaluation.plot().png.startswith(b"\x89PNG")
    assert evaluation.plot("emotions", "lexicon").png != evaluation.plot().png


class Approving:
    """Finds the target in every text."""

    name, config = "approving", {"version": 1}

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]:
        return [Verdict(True, target, "") for target in targets]


def test_judges_are_named_or_made_and_asked_once(stub: Stub, data: Path, tmp_path: Path) -> None:
    made: list[Sequence[str]] = []

    def approving(emotions: Sequence[str]) -> Judge:
        made.append(emotions)
        return Approving()

    run: dict[str, Any] = {"model": Server(stub.url), "out": tmp_path, "data": data, "settings": FEW}
    evaluation = evaluate(judges=("lexicon", approving), **run)
    assert evaluation.judges == ("lexicon", "approving")
    (none, *_) = evaluation.table()
    assert (none["accuracy, lexicon"], none["accuracy, approving"]) == (0, 1)
    assert made == [list(EMOTIONS)]
    # Once more asks for nothing, and says the same.
    stub.requests.clear()
    assert evaluate(judges=("lexicon", approving), **run).cells == evaluation.cells
    assert stub.requests == []
    with pytest.raises(JudgeError, match="no judge 'oracle'"):
        evaluate(judges=["oracle"], **run)


@pytest.mark.slow
def test_what_is_felt_is_told_and_drawn_beside_what_is_shown(
    stub: Stub, data: Path, tmp_path: Path, rendered: None
) -> None:
    stub.pages = pages(DIGEST, 2.0, READING)
    run: dict[str, Any] = {"model": Server(stub.url), "data": data, "strengths": (1,), "settings": FEW}
    evaluation = evaluate(judges=["readout", "lexicon"], out=tmp_path / "out", **run)
    assert evaluation.judges == ("readout", "lexicon")
    rows = {(row["method"], row["emotion"]): row for row in evaluation.felt()}
    assert list(rows) == [(method, emotion) for method in FEW.methods for emotion in (*EMOTIONS, "all")]
    assert rows["circuits", "anger"] == {
        "method": "circuits",
        "strength": 1,
        "with": "",
        "emotion": "anger",
        "replies": 2,
        "felt and shown": 0.5,
        "felt alone": 0,
        "shown alone": 0.5,
        "neither": 0,
    }
    assert evaluation.felt("lexicon") == evaluation.felt()
    assert evaluation.plot("felt").png.startswith(b"\x89PNG")
    assert evaluation.page.read_text().count("data:image/png") == 5
    for judges in ("lexicon", "readout"):
        alone = evaluate(judges=judges, out=tmp_path / judges, **run)
        with pytest.raises(EvaluationError, match="needs the judge readout, and one of texts beside it"):
            alone.felt()
    with pytest.raises(EvaluationError, match="needs the judge readout, and one of texts"):
        evaluation.plot("felt", "readout")


def test_only_replies_that_are_evaluated_can_be_read(stub: Stub, model: str, circuit: Path, data: Path) -> None:
    with pytest.raises(JudgeError, match="only `emovllm evaluate` has them"):
        calibrate(circuit, model, data=data, judge="readout")
    settings = EvaluationSettings(methods=("none",), probe=circuit)
    with pytest.raises(EvaluationError, match="add it to --judge"):
        evaluate(circuit, model, out=circuit / "out", data=data, judges="lexicon", settings=settings)
    assert stub.requests == []


def test_a_loop_that_runs_already_is_no_hindrance(stub: Stub, data: Path, tmp_path: Path) -> None:
    """As in a notebook."""

    async def cell() -> float:
        evaluation = evaluate(model=Server(stub.url), out=tmp_path, data=data, judges="lexicon", settings=FEW)
        return float(evaluation.table()[-1]["accuracy, lexicon"])

    assert asyncio.run(cell()) == 1


def test_a_calibrated_folder_holds_what_was_chosen(
    stub: Stub, model: str, circuit: Path, data: Path, rendered: None
) -> None:
    strengths = (0.5, 1.0, 2.0)
    calibration = calibrate(circuit, model, data=data, strengths=strengths, judge="lexicon")
    assert load_circuit(circuit).digest() == calibration.circuit.digest()
    for emotion in calibration.circuit.spec.emotions:
        assert (emotion.recommended, emotion.maximal) == (0.5, 1.0)
    (anger, _) = calibration.table()
    assert {key: anger[key] for key in ("emotion", "recommended", "maximal", "accuracy, lexicon")} == {
        "emotion": "anger",
        "recommended": 0.5,
        "maximal": 1.0,
        "accuracy, lexicon": 1,
    }
    assert calibration.folder == circuit.with_name("circuit.work") / "calibration"
    assert calibration.plot().png == (calibration.folder / "frontier.png").read_bytes()


def test_a_circuit_in_memory_is_calibrated_in_the_folder_of_the_results(
    stub: Stub, model: str, circuit: Path, data: Path, tmp_path: Path
) -> None:
    given = load_circuit(circuit)
    run: dict[str, Any] = {"out": tmp_path / "out", "data": data, "strengths": (0.5, 1.0), "judge": LexiconJudge}
    first = calibrate(given, model, **run)
    assert [emotion.recommended for emotion in first.circuit.spec.emotions] == [0.5, 0.5]
    assert load_circuit(circuit).digest() == given.digest()
    stub.requests.clear()
    assert calibrate(given, model, **run).circuit.digest() == first.circuit.digest()
    assert stub.requests == []


def test_an_emotion_for_which_no_strength_will_do_has_no_figures(
    stub: Stub, model: str, circuit: Path, data: Path, rendered: None
) -> None:
    settings = CalibrationSettings(bounds=Bounds(fluency=0.5))
    calibration = calibrate(circuit, model, data=data, strengths=(1.0,), judge="lexicon", settings=settings)
    assert calibration.calibrated.uncalibrated == EMOTIONS
    assert calibration.table()[0] == {
        "emotion": "anger",
        **dict.fromkeys(("recommended", "maximal", "accuracy, lexicon", "false positives", "fluency", "repetition")),
    }
    assert calibration.plot().png.startswith(b"\x89PNG")


def test_what_cannot_be_served_or_changed_is_told_in_a_line(
    stub: Stub, model: str, circuit: Path, tmp_path: Path
) -> None:
    memory = load_circuit(circuit)
    out: dict[str, Any] = {"out": tmp_path / "out"}
    for function in (evaluate, calibrate):
        with pytest.raises(ModelError, match="pass its folder or Hugging Face id"):
            function(circuit, object(), **out)  # type: ignore[operator]
    with pytest.raises(CircuitError, match="pass the name that one has there"):
        evaluate(memory, Server(stub.url), **out)
    with pytest.raises(CircuitError, match=f"no circuit for {model}: pass"):
        evaluate(model=model, **out)
    with pytest.raises(CircuitError, match=r"in memory .* pass `out`"):
        calibrate(memory, model)
    with pytest.raises(CircuitError, match=r"of/another: .* pass its folder"):
        calibrate("of/another", model)
    with pytest.raises(ModelError, match="not a server"):
        calibrate(circuit, Server(stub.url))  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="of the test set"):
        calibrate(circuit, model, data="sev-test", limit=1, judge="lexicon", **out)
    assert stub.requests == []


@pytest.mark.parametrize("in_memory", [True, False])
def test_side_effects_are_measured_from_a_folder_or_from_memory(
    stub: Stub, model: str, circuit: Path, tmp_path: Path, rendered: None, in_memory: bool
) -> None:
    given = load_circuit(circuit) if in_memory else circuit
    costs = measure_side_effects(given, model, out=tmp_path / "out", limit=1, strengths=(1,))
    rows = {(row["kind"], row["emotion"]): row for row in costs.table()}
    assert len(rows) == 7 * (1 + 1 + len(EMOTIONS))
    # The stub says the same of everything: a statement, which neither answers nor declines.
    assert (rows["harmless", "plain"]["right"], rows["harmless", "plain"]["change"]) == (1, None)
    assert rows["true claims", "anger"]["none"] == 1
    assert rows["harmless", "all"]["change"] == 0
    assert rows["harmless", "all"]["change, low"] < 0 < rows["harmless", "all"]["change, high"]
    assert costs.plot().png.startswith(b"\x89PNG")
    assert "Side effects" in costs.page.read_text()
    assert costs.found.circuit == load_circuit(circuit).digest()


def test_side_effects_of_a_model_without_a_circuit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CircuitError, match="no circuit for some/model"):
        measure_side_effects(model="some/model", out=tmp_path)
