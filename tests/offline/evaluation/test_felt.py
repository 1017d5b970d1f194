"""An evaluation that reads the model: against a server that answers, and reads, by rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emovllm.errors import EndpointError, EvaluationError, ProbeError
from emovllm.probe import load_probe
from emovllm.readout import Reading
from emovllm_offline.data.messages import Message
from emovllm_offline.data.styles import load_style
from emovllm_offline.evaluation import target as targets
from emovllm_offline.evaluation.evaluate import evaluate
from emovllm_offline.evaluation.felt import BOTH, FELT, NEITHER, SHOWN, Parting, Rise, most_parted
from emovllm_offline.evaluation.plan import METHODS, Asked
from emovllm_offline.evaluation.results import Results
from emovllm_offline.evaluation.summary import ALL, Condition, find
from emovllm_offline.evaluation.target import Where
from emovllm_offline.judges.lexicon import LexiconJudge
from emovllm_offline.judges.readout import ReadoutJudge, ReplyJudge
from support.circuits import random_circuit
from support.evaluated import DIGEST, EMOTIONS, LABELS, PROBE, READING, READS, answer, pages, serve_by
from support.models import tiny_model
from support.stub import Stub

pytestmark = pytest.mark.usefixtures("quick")

MESSAGES = [Message("early", "positive", "The bus came early."), Message("late", "negative", "The bus came late.")]
ASKED = Asked(MESSAGES, load_style("paper"), METHODS, (1.0,), 100)
FEW = replace(ASKED, methods=("none", "circuits"))
NONE, PROMPTING, STEERING, CIRCUITS = (Condition(name, float(name in METHODS[2:]), "") for name in METHODS[:4])


@pytest.fixture
def stub(stub: Stub) -> Stub:
    stub.pages = pages(DIGEST, 2.0, READING)
    return stub


def both(emotions: Sequence[str]) -> list[ReplyJudge]:
    return [LexiconJudge(emotions), ReadoutJudge()]


def text_alone(emotions: Sequence[str]) -> list[ReplyJudge]:
    return [LexiconJudge(emotions)]


def run(stub: Stub, out: Path, asked: Asked = FEW, judges: Any = both, **options: Any) -> Results:
    return evaluate(Where(base_url=stub.url, concurrency=4), asked, judges, out, **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def accuracy(results: Results, judge: str, condition: Condition, emotion: str = ALL) -> float:
    cell = find(results.cells, condition, emotion)
    assert cell is not None
    estimate = cell.accuracy[judge]
    assert estimate is not None
    return estimate.value


def parting(results: Results, condition: Condition, emotion: str) -> Parting:
    assert results.felt is not None
    (found,) = [of for of in results.felt.partings if (of.condition, of.emotion) == (condition, emotion)]
    return found


def rise(results: Results, condition: Condition, emotion: str) -> Rise:
    assert results.felt is not None
    (found,) = [of for of in results.felt.rises if (of.condition, of.emotion) == (condition, emotion)]
    return found


def test_replies_are_read_where_a_judge_asks_for_it_and_only_there(stub: Stub, tmp_path: Path) -> None:
    results = run(stub, tmp_path, ASKED)
    replies = lines(tmp_path / "replies.jsonl")
    asked = [request for request in stub.requests if "messages" in request]
    assert {request["emotion_readout"] for request in asked} == {"reply"}
    assert not any("emotion_readout" in request for request in stub.requests if "prompt" in request)
    by_key = {tuple(reply["key"][:3]): reply["readout"] for reply in replies}
    assert by_key["early", "circuits", "anger"] == {
        "probe": PROBE,
        "layer": 3,
        "reply": dict(zip(LABELS, READS["anger"], strict=True)),
        "prompt": {"anger": 0.25, "fear": 0.25, "neutral": 0.5},
    }
    scored = lines(tmp_path / "scored.jsonl")
    assert all(row["readout"]["reply"] for row in scored)
    # Anger is injected and fear is read where the bus came late; of plain replies anger leads, behind neutral.
    assert accuracy(results, "readout", CIRCUITS, "anger") == 0.5
    assert accuracy(results, "readout", CIRCUITS, "fear") == 1
    assert accuracy(results, "readout", NONE, "anger") == 1
    assert accuracy(results, "readout", NONE, "fear") == 0
    assert accuracy(results, "lexicon", CIRCUITS) == 1
    plain = [row["labels"]["readout"] for row in scored if row["method"] == "none"]
    assert plain == ["anger", "anger"]

    stub.requests.clear()
    unread = run(stub, tmp_path / "unread", judges=text_alone)
    assert not any("emotion_readout" in request for request in stub.requests)
    assert unread.felt is None
    assert "readout" not in lines(tmp_path / "unread" / "scored.jsonl")[0]
    assert "Felt" not in (tmp_path / "unread" / "page.html").read_text()


def test_what_is_felt_is_counted_beside_what_is_shown(stub: Stub, tmp_path: Path) -> None:
    results = run(stub, tmp_path, ASKED)

    def shares(condition: Condition, emotion: str) -> list[float]:
        found = parting(results, condition, emotion)
        return [found.shares[kind].value for kind in (BOTH, FELT, SHOWN, NEITHER)]

    assert shares(CIRCUITS, "anger") == [0.5, 0, 0.5, 0]
    assert shares(CIRCUITS, "fear") == [1, 0, 0, 0]
    assert shares(CIRCUITS, ALL) == [0.75, 0, 0.25, 0]
    # Steering is read as circuits are, and its texts are plain; prompted texts show what is not read.
    assert shares(STEERING, "anger") == [0, 0.5, 0, 0.5]
    assert shares(PROMPTING, "fear") == [0, 0, 1, 0]
    # The control: nothing was asked for, and of the emotions one leads.
    assert shares(NONE, "anger") == [0, 1, 0, 0]
    assert shares(NONE, ALL) == [0, 0.5, 0, 0.5]
    assert (parting(results, NONE, ALL).replies, parting(results, CIRCUITS, "anger").replies) == (4, 2)
    interval = parting(results, CIRCUITS, "anger").shares[SHOWN]
    assert 0 <= interval.low < 0.5 < interval.high <= 1
    assert results.felt is not None
    worst = [(str(of.condition), of.emotion, of.parted.value) for of in most_parted(results.felt.partings, "lexicon")]
    # Nothing is said of the plain replies.
    assert worst == [("prompting", "fear", 1), ("steering 1", "fear", 1), ("steering 1", "anger", 0.5)]


def test_what_is_read_is_told_beside_the_plain_replies(stub: Stub, tmp_path: Path) -> None:
    results = run(stub, tmp_path)
    anger = rise(results, CIRCUITS, "anger")
    assert anger.plain is not None
    assert anger.rise is not None
    assert [anger.reply.value, anger.prompt.value, anger.plain.value, anger.rise.value] == pytest.approx(
        [(0.7 + 0.2) / 2, 0.25, 0.3, (0.7 - 0.3 + 0.2 - 0.3) / 2]
    )
    assert rise(results, CIRCUITS, ALL).reply.value == pytest.approx((0.7 + 0.2 + 0.7 + 0.7) / 4)
    without = run(stub, tmp_path / "without", replace(FEW, methods=("circuits",)))
    control = rise(without, CIRCUITS, "anger")
    assert (control.plain, control.rise) == (None, None)


def test_the_files_and_the_page_tell_what_is_felt(stub: Stub, tmp_path: Path) -> None:
    run(stub, tmp_path)
    page, table = (tmp_path / "page.html").read_text(), (tmp_path / "summary.md").read_text()
    for title in ("Felt against shown, judge lexicon", "Replies where they part, judge lexicon", "What was read"):
        assert f"<h2>{title}</h2>" in page
    assert "They part most in: circuits 1, anger: 50.0 (" in page
    assert "felt alone 0%, shown alone 50%" in table
    assert "fear 0.70" in page
    assert "| circuits 1 | anger | 2 | 50.0 (" in table
    assert f"by the probe {PROBE[:12]} (anger, fear, neutral)" in table
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["readout"] == {**READING.body(), "without a label": []}
    (anger, *_) = [of for of in summary["felt"]["partings"] if of["condition"]["method"] == "circuits"]
    assert (anger["emotion"], anger["judge"], anger["shares"]["shown alone"]["value"]) == ("anger", "lexicon", 0.5)
    assert len(summary["felt"]["rises"]) == 3
    # Each reply of the samples is told with what leads in it.
    assert page.count("<th>read</th>") > 0


def test_the_read_out_alone_is_compared_with_nothing(stub: Stub, tmp_path: Path) -> None:
    results = run(stub, tmp_path, judges=lambda emotions: [ReadoutJudge()])
    assert results.felt is not None
    assert results.felt.partings == []
    assert len(results.felt.rises) == 3
    page = (tmp_path / "page.html").read_text()
    assert "Felt against shown" not in page
    assert "<h2>What was read</h2>" in page


def test_an_interrupted_evaluation_reads_what_is_missing(stub: Stub, tmp_path: Path) -> None:
    answers = iter(range(4))
    stub.answer = lambda request: answer(request) if next(answers, None) is not None else 400
    with pytest.raises(EndpointError):
        run(stub, tmp_path)
    there = len(lines(tmp_path / "replies.jsonl"))
    assert 0 < there < 6
    stub.answer = answer
    stub.requests.clear()
    results = run(stub, tmp_path)
    assert sum("messages" in request for request in stub.requests) == 6 - there
    assert all(reply["readout"]["probe"] == PROBE for reply in lines(tmp_path / "replies.jsonl"))
    # Once more asks for nothing, and says the same; so does a judge of texts.
    stub.requests.clear()
    assert run(stub, tmp_path).felt == results.felt
    assert run(stub, tmp_path, judges=text_alone).felt is None
    assert stub.requests == []


def test_replies_that_nobody_read_or_that_another_probe_read_are_refused(stub: Stub, tmp_path: Path) -> None:
    run(stub, tmp_path, judges=text_alone)
    stub.requests.clear()
    with pytest.raises(EvaluationError, match="holds replies that nobody read as they were written; give --fresh"):
        run(stub, tmp_path)
    run(stub, tmp_path, fresh=True)
    stub.requests.clear()
    for reading in (Reading("q" * 64, 3, LABELS), Reading(PROBE, 2, LABELS)):
        stub.pages = pages(DIGEST, 2.0, reading)
        with pytest.raises(EvaluationError, match="were read by another probe or layer"):
            run(stub, tmp_path)
    assert stub.requests == []


def test_a_server_that_reads_nothing_is_told_before_anything_is_asked(stub: Stub, tmp_path: Path) -> None:
    stub.pages = pages(DIGEST, 2.0)
    with pytest.raises(EvaluationError, match=r"the server reads nothing: start it with --readout, .* --probe DIR"):
        run(stub, tmp_path / "out")
    where = Where(base_url=stub.url, probe="DIR")
    with pytest.raises(EvaluationError, match="the server at --base-url has its own"):
        evaluate(where, FEW, both, tmp_path / "out")
    with pytest.raises(EvaluationError, match="--probe is for the judge readout: add it to --judge"):
        evaluate(where, FEW, text_alone, tmp_path / "out")
    assert stub.requests == []
    assert not (tmp_path / "out").exists()


def test_a_reply_without_a_reading_ends_the_run(stub: Stub, tmp_path: Path) -> None:
    stub.answer = lambda request: answer({name: of for name, of in request.items() if name != "emotion_readout"})
    with pytest.raises(EvaluationError, match="a reply came without what was read"):
        run(stub, tmp_path)


def test_an_emotion_that_the_probe_has_no_label_for_is_told_and_not_judged(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(request: dict[str, Any]) -> bytes:
        body = json.loads(answer(request))
        if "emotion_readout" in request:
            for part in ("reply", "prompt"):
                del body["choices"][0]["emotion_readout"][part]["fear"]
        return json.dumps(body).encode()

    stub.answer = lacking
    stub.pages = pages(DIGEST, 2.0, Reading(PROBE, 3, ("anger", "neutral")))
    results = run(stub, tmp_path)
    assert "the probe has no label for fear: the read-out does not judge them" in capsys.readouterr().err
    fear, anger = (find(results.cells, CIRCUITS, emotion) for emotion in ("fear", "anger"))
    assert fear is not None
    assert anger is not None
    assert (fear.accuracy["readout"], fear.unjudged["readout"]) == (None, 2)
    assert (accuracy(results, "readout", CIRCUITS, "anger"), anger.unjudged["readout"]) == (1, 0)
    assert results.felt is not None
    assert {of.emotion for of in results.felt.partings} == {of.emotion for of in results.felt.rises} == {"anger", ALL}
    # Over all emotions: those that it has a label for.
    assert parting(results, CIRCUITS, ALL).replies == 2
    assert results.about["unjudged"]["readout"]["first_reason"] == "the probe has no label fear"
    assert "It has no label for fear" in (tmp_path / "page.html").read_text()
    stub.pages = pages(DIGEST, 2.0, Reading(PROBE, 3, ("awe", "neutral")))
    with pytest.raises(EvaluationError, match="no label for any emotion of the circuit, only awe, neutral"):
        run(stub, tmp_path / "other")


def test_an_engine_that_is_started_here_reads_with_the_circuits_probe_or_another(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tmp_path / "model")
    circuit = random_circuit(model, tmp_path / "circuit", names=EMOTIONS, probe=True)
    bare = random_circuit(model, tmp_path / "bare", names=EMOTIONS)
    probe = load_probe(circuit)
    serve_by(stub, monkeypatch)
    started: list[tuple[str, ...]] = []
    serve = targets.local_server

    def noted(*places: Any, engine_args: Sequence[str] = (), **options: Any) -> Any:
        started.append(tuple(engine_args))
        server = serve(*places, engine_args=engine_args, **options)
        # Of another layer than the probe's best.
        stub.pages["/v1/emotions"]["reading"] = Reading(probe.digest, 0, LABELS).body()
        return server

    def here(request: dict[str, Any]) -> bytes:
        body = json.loads(answer(request))
        if "emotion_readout" in request:
            body["choices"][0]["emotion_readout"] |= {"probe": probe.digest, "layer": 0}
        return json.dumps(body).encode()

    monkeypatch.setattr(targets, "local_server", noted)
    stub.answer = here
    where = Where(model, str(circuit), engine_args=("--readout-layer", "0"))
    results = evaluate(where, FEW, both, tmp_path / "out")
    assert results.about["readout"]["layer"] == 0
    # Nothing is missing: no engine is started.
    assert evaluate(where, FEW, both, tmp_path / "out").felt == results.felt
    evaluate(replace(where, circuit=str(bare), probe=str(circuit)), FEW, both, tmp_path / "other")
    assert started == [("--readout", "--readout-layer", "0"), ("--probe", str(circuit), "--readout-layer", "0")]
    with pytest.raises(ProbeError, match="no probe of layer 99"):
        evaluate(replace(where, engine_args=("--readout-layer=99",)), FEW, both, tmp_path / "none")
    # Told of the layer in a way that only the engine knows.
    with pytest.raises(EvaluationError, match="were read by another probe or layer"):
        evaluate(replace(where, engine_args=("--readout-la=0",)), FEW, both, tmp_path / "told")
    with pytest.raises(EvaluationError, match=r"bare holds no probe to read with: give --probe DIR"):
        evaluate(replace(where, circuit=str(bare)), FEW, both, tmp_path / "bare-out")
    assert not (tmp_path / "bare-out").exists()
