"""Further conditions of an evaluation: fields of requests, beside the plain strengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emovllm.errors import EvaluationError, StoredError
from emovllm.probe import load_probe
from emovllm.readout import Reading
from emovllm_offline import evaluate as evaluate_here
from emovllm_offline.api import EvaluationSettings, Server
from emovllm_offline.commands.evaluate import EvaluateOptions, main
from emovllm_offline.data.messages import Message
from emovllm_offline.data.styles import load_style
from emovllm_offline.evaluation import target as targets
from emovllm_offline.evaluation.evaluate import evaluate
from emovllm_offline.evaluation.figures import frontier
from emovllm_offline.evaluation.further import read_further
from emovllm_offline.evaluation.plan import Asked
from emovllm_offline.evaluation.results import Summary
from emovllm_offline.evaluation.summary import Condition
from emovllm_offline.evaluation.target import Where
from emovllm_offline.judges.lexicon import LexiconJudge
from emovllm_offline.judges.readout import ReplyJudge
from support.circuits import random_circuit
from support.evaluated import DIGEST, EMOTIONS, LABELS, PROBE, READING, pages, serve_by
from support.models import tiny_model
from support.stub import Stub

pytestmark = pytest.mark.usefixtures("quick")

FADING: dict[str, Any] = {"emotion_schedule": {"hold": 20, "half_life": 40}}
LOOP: dict[str, Any] = {"emotion_target": 0.5, "emotion_strength": 1}
MESSAGES = [Message("a", "neutral", "The bus came early."), Message("b", "neutral", "The bus came late.")]
METHODS = ("none", "prompting", "circuits", "circuits+prompting")
ASKED = Asked(MESSAGES, load_style("paper"), METHODS, (0.5, 1.0), 100, further={"fading": FADING})


def lexicon(emotions: Sequence[str]) -> list[ReplyJudge]:
    return [LexiconJudge(emotions)]


def run(stub: Stub, out: Path, asked: Asked = ASKED, **options: Any) -> Any:
    return evaluate(Where(base_url=stub.url, concurrency=4), asked, lexicon, out, **options)


def chats(stub: Stub) -> list[dict[str, Any]]:
    return [request for request in stub.requests if "messages" in request]


def fields(request: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name.startswith("emotion")}


def test_each_is_asked_at_every_strength_by_the_circuit_methods_alone(stub: Stub, tmp_path: Path) -> None:
    results = run(stub, tmp_path, replace(ASKED, methods=("none", "steering", *METHODS[1:])))
    faded = [fields(request) for request in chats(stub) if "emotion_schedule" in request]
    # Two messages, by two methods.
    assert sorted((of["emotion"], of["emotion_strength"]) for of in faded) == sorted(
        (emotion, strength) for emotion in EMOTIONS for strength in (0.5, 1.0) for _ in range(4)
    )
    assert {json.dumps(of["emotion_schedule"]) for of in faded} == {json.dumps(FADING["emotion_schedule"])}
    # The plain strengths are asked as ever.
    assert len(chats(stub)) == len(faded) + 2 * (1 + 2 * (1 + 3 * 2))
    conditions = list(dict.fromkeys(cell.condition for cell in results.cells))
    assert [condition for condition in conditions if condition.method == "circuits"] == [
        Condition("circuits", 0.5, ""),
        Condition("circuits", 1.0, ""),
        Condition("circuits", 0.5, "", "fading"),
        Condition("circuits", 1.0, "", "fading"),
    ]
    assert str(Condition("circuits+prompting", 0.5, "", "fading")) == "circuits+prompting 0.5 fading"
    assert "| circuits 0.5 fading | 4 |" in (tmp_path / "summary.md").read_text()
    assert "<td>circuits+prompting 1 fading</td>" in (tmp_path / "page.html").read_text()
    assert list(Summary.load(tmp_path).cells) == list(results.cells)
    assert Summary.load(tmp_path).settings["further"] == {"fading": FADING}


def test_the_frontier_has_a_line_for_each(stub: Stub, tmp_path: Path) -> None:
    stub.pages = pages(DIGEST, 2.0, READING)
    results = run(stub, tmp_path, replace(ASKED, further={"fading": FADING, "loop": LOOP}))
    ax = frontier(results.cells, "lexicon").axes[0]
    drawn = {line.get_label(): len(line.get_xdata()) for line in ax.lines}
    assert {name: drawn[name] for name in ("circuits", "circuits fading", "circuits loop")} == {
        "circuits": 2,
        "circuits fading": 2,
        "circuits loop": 1,
    }
    assert ax.get_xlabel().startswith("perplexity given the instruction")
    # Without prompted replies there is no fluency.
    alone = run(stub, tmp_path / "alone", replace(ASKED, methods=("none", "circuits")))
    ax = frontier(alone.cells, "lexicon").axes[0]
    assert ax.get_xlabel().startswith("perplexity, over the plain reply's")
    assert {line.get_label() for line in ax.lines} >= {"none", "circuits", "circuits fading"}


def test_a_strength_of_its_own_is_asked_alone(stub: Stub, tmp_path: Path) -> None:
    run(stub, tmp_path, replace(ASKED, methods=("circuits",), further={"weak": {**FADING, "emotion_strength": 0.25}}))
    assert {of["emotion_strength"] for of in chats(stub) if "emotion_schedule" in of} == {0.25}
    lines = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert {(line["strength"], line["further"]) for line in lines} == {(0.5, ""), (1.0, ""), (0.25, "weak")}


def test_a_rerun_asks_for_nothing_and_other_fields_are_another_evaluation(stub: Stub, tmp_path: Path) -> None:
    cells = run(stub, tmp_path).cells
    stub.requests.clear()
    assert run(stub, tmp_path).cells == cells
    faster = {"fading": {"emotion_schedule": {"half_life": 4}}}
    for further in ({}, faster, {"other": FADING}):
        with pytest.raises(StoredError, match="give --fresh"):
            run(stub, tmp_path, replace(ASKED, further=further))
    assert stub.requests == []


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"x": {"emotion_schedule": {"half_life": 0}}}, "further condition x: emotion_schedule must have a half_life"),
        ({"x": {"emotion": "fear"}}, "x: emotion is not for it to say: choose from emotion_strength, emotion_scope,"),
        ({"x": {"emotion_method": "steering"}}, "emotion_method is not for it to say"),
        ({"x": {"temperature": 1}}, "temperature is not for it to say"),
        ({"x": {}}, "x: it has no fields"),
        ({"x": {"emotion_strength": "1"}}, "emotion_strength must be a finite number"),
        ({"x": {"emotion_strength": 2.5}}, r"strength 2\.5 is over the circuit's maximum for anger, 2"),
        ({"all": FADING}, "needs a name of its own, not 'all'"),
        ({" ": FADING}, "needs a name of its own"),
        ({"x": LOOP}, "emotion_target: the server reads nothing: start it with --readout"),
    ],
)
def test_what_cannot_be_asked_for_is_told_before_anything_is(
    stub: Stub, tmp_path: Path, further: Any, message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        run(stub, tmp_path / "out", replace(ASKED, further=further))
    assert stub.requests == []
    assert not (tmp_path / "out").exists()


def test_methods_without_a_circuit_have_none(stub: Stub, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"are of the methods circuits and circuits\+prompting"):
        run(stub, tmp_path, replace(ASKED, methods=("none", "steering")))
    assert stub.requests == []


def test_a_target_goes_by_the_servers_probe_and_no_reply_is_read_for_it(stub: Stub, tmp_path: Path) -> None:
    asked = replace(ASKED, further={"loop": LOOP})
    stub.pages = pages(DIGEST, 2.0, READING)
    results = run(stub, tmp_path, asked)
    assert {of["emotion_target"] for of in chats(stub) if "emotion_target" in of} == {0.5}
    assert not any("emotion_readout" in request for request in stub.requests)
    assert results.felt is None
    assert results.about["settings"]["target"] == {"probe": PROBE, "layer": 3}
    # Another probe gives other replies.
    stub.pages = pages(DIGEST, 2.0, Reading("q" * 64, 3, LABELS))
    with pytest.raises(StoredError, match="give --fresh"):
        run(stub, tmp_path, asked)
    stub.pages = pages(DIGEST, 2.0, Reading(PROBE, 3, ("anger", "neutral")))
    with pytest.raises(EvaluationError, match="emotion_target: the probe has no label for fear, only anger, neutral"):
        run(stub, tmp_path / "lacking", asked)


def test_an_engine_that_is_started_here_has_what_a_target_needs(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tmp_path / "model")
    circuit = random_circuit(model, tmp_path / "circuit", names=EMOTIONS, probe=True)
    bare = random_circuit(model, tmp_path / "bare", names=EMOTIONS)
    serve_by(stub, monkeypatch)
    started: list[tuple[str, ...]] = []
    serve = targets.local_server

    def noted(*places: Any, engine_args: Sequence[str] = (), **options: Any) -> Any:
        started.append(tuple(engine_args))
        return serve(*places, engine_args=engine_args, **options)

    monkeypatch.setattr(targets, "local_server", noted)
    asked = replace(ASKED, methods=("none", "circuits"), further={"loop": LOOP})
    results = evaluate(Where(model, str(circuit)), asked, lexicon, tmp_path / "out")
    assert results.about["settings"]["target"]["probe"] == load_probe(circuit).digest
    evaluate(Where(model, str(bare), probe=str(circuit)), asked, lexicon, tmp_path / "other")
    fading = replace(asked, further={"fading": FADING})
    evaluate(Where(model, str(bare)), fading, lexicon, tmp_path / "fading")
    assert started == [("--readout",), ("--probe", str(circuit)), ()]
    with pytest.raises(EvaluationError, match=r"emotion_target: .*bare holds no probe to read with: give --probe DIR"):
        evaluate(Where(model, str(bare)), asked, lexicon, tmp_path / "none")
    # A circuit that is here tells what does not go together.
    last = {"x": {**FADING, "emotion_scope": "prompt_last"}}
    with pytest.raises(EvaluationError, match="further condition x: emotion_schedule is of the reply"):
        evaluate(Where(model, str(bare)), replace(asked, further=last), lexicon, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_command_and_the_notebook_say_the_same(stub: Stub, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text('{"user": "The bus came early."}\n')
    words = ("fading=" + json.dumps(FADING), 'weak={"emotion_strength": 0.25}')
    of_command = EvaluateOptions(
        base_url=stub.url,
        data=str(data),
        methods=("none", "circuits"),
        strengths=(1.0,),
        judge=("lexicon",),
        further=words,
        out=tmp_path / "command",
    )
    main(of_command)
    settings = EvaluationSettings(methods=("none", "circuits"), paper_way=0, further=read_further(words))
    evaluation = evaluate_here(
        model=Server(stub.url), out=tmp_path / "api", data=data, strengths=(1.0,), judges="lexicon", settings=settings
    )
    summaries = [Summary.load(tmp_path / name) for name in ("command", "api")]
    assert summaries[0].cells == summaries[1].cells
    assert "--with" in summaries[0].command
    rows = [(row["method"], row["strength"], row["with"]) for row in evaluation.table()]
    assert rows == [("none", 0, ""), ("circuits", 1, ""), ("circuits", 1, "fading"), ("circuits", 0.25, "weak")]


@pytest.mark.parametrize("word", ["fading", "=1", "fading={", "fading=[1]", '={"emotion_strength": 1}'])
def test_words_that_name_no_fields_are_refused(word: str) -> None:
    with pytest.raises(EvaluationError, match=r"--with .*expected NAME and the fields of a request in JSON"):
        read_further([word])


def test_a_name_is_given_once() -> None:
    with pytest.raises(EvaluationError, match="--with a is given twice"):
        read_further(['a={"emotion_strength": 1}', 'a={"emotion_strength": 2}'])
