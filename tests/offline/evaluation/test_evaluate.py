"""Evaluation and calibration from their options to their files, against a server that answers by rule."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emovllm.circuit_files import load_circuit
from emovllm.errors import DataError, EmotionError, EndpointError, EvaluationError, JudgeError, StoredError
from emovllm.readout import NEUTRAL
from emovllm_offline.data.messages import Message, load_messages, overlaps_test_set
from emovllm_offline.data.styles import load_style
from emovllm_offline.evaluation import calibrate as calibration
from emovllm_offline.evaluation import paper_way
from emovllm_offline.evaluation.choice import Bounds
from emovllm_offline.evaluation.evaluate import evaluate
from emovllm_offline.evaluation.plan import METHODS, Asked, Key, tasks
from emovllm_offline.evaluation.samples import draw_samples
from emovllm_offline.evaluation.summary import ALL, Cell, Condition, find
from emovllm_offline.evaluation.tables import accuracy, by_emotion_and_valence
from emovllm_offline.evaluation.target import Where
from emovllm_offline.intervals import Estimate
from emovllm_offline.judges.judge import Judge, Verdict
from emovllm_offline.judges.lexicon import LexiconJudge
from emovllm_offline.model.timing_process import Baseline
from support.evaluated import EMOTIONS, SAYS, answer, ids, pages, serve_by
from support.stub import Stub, filtering, in_turn, newer_openai

pytestmark = pytest.mark.usefixtures("quick")

MESSAGES = [
    Message("a.positive", "positive", "The bus came early."),
    Message("a.negative", "negative", "The bus came late."),
]


def lexicon(emotions: Sequence[str]) -> list[Judge]:
    return [LexiconJudge(emotions)]


ASKED = Asked(MESSAGES, load_style("paper"), METHODS, (1.0, 2.0), 100)


def run(stub: Stub, out: Path, asked: Asked = ASKED, **options: Any) -> list[Cell]:
    return list(evaluate(Where(base_url=stub.url, concurrency=4), asked, lexicon, out, **options).cells)


def value(cells: list[Cell], condition: Condition, name: str, emotion: str = ALL, valence: str = ALL) -> float:
    cell = find(cells, condition, emotion, valence)
    assert cell is not None
    estimate = cell.accuracy["lexicon"] if name == "accuracy" else getattr(cell, name)
    return float(estimate.value)


def test_every_method_is_asked_as_it_should_be_and_decoded_alike(stub: Stub, tmp_path: Path) -> None:
    run(stub, tmp_path)
    asked = [request for request in stub.requests if "messages" in request]
    # One plain reply and, of each emotion, one prompted and two strengths of three methods.
    assert len(asked) == len(MESSAGES) * (1 + 2 * (1 + 2 * 3))
    kinds = set()
    for request in asked:
        assert (request["temperature"], request["max_tokens"], request["repetition_penalty"]) == (0, 100, 1)
        system, user = (message["content"] for message in request["messages"])
        assert user in {message.user for message in MESSAGES}
        assert system.endswith("Keep the reply to at most two sentences.")
        kinds.add(("Always reply" in system, request["emotion"] != "none", request.get("emotion_method")))
    assert kinds == {
        (False, False, None),
        (True, False, None),
        (False, True, "steering"),
        (False, True, None),
        (True, True, None),
    }
    # Likelihoods are the unsteered model's: of all replies given the neutral prompt, of those in an emotion given that.
    scored = [request for request in stub.requests if "prompt" in request]
    assert {request["emotion"] for request in scored} == {"none"}
    assert len(scored) == 2 * len(asked) - len(MESSAGES)


def test_the_summary_holds_what_the_replies_say(stub: Stub, tmp_path: Path) -> None:
    cells = run(stub, tmp_path)
    none, circuits = Condition("none", 0.0, ""), Condition("circuits", 1.0, "")
    assert value(cells, none, "accuracy") == 0
    assert value(cells, Condition("prompting", 0.0, ""), "accuracy") == 1
    assert value(cells, circuits, "accuracy", "fear", "negative") == 1
    assert value(cells, Condition("steering", 1.0, ""), "accuracy") == 0
    # The same text as the prompted one is as fluent; against the plain one it is what their letters say.
    assert value(cells, circuits, "fluency") == pytest.approx(1)
    means = [np.mean(ids(SAYS[name])) / 1000 for name in ("fear", "")]
    assert value(cells, circuits, "perplexity", "fear") == pytest.approx(math.exp(means[0] - means[1]))
    assert value(cells, none, "perplexity") == pytest.approx(1)
    assert value(cells, circuits, "repetition") == 0
    assert value(cells, Condition("circuits", 2.0, ""), "repetition") > 0.5
    collapsed = find(cells, Condition("circuits", 2.0, ""))
    assert collapsed is not None
    assert collapsed.regimes == {"surgical": 0, "repetitive": 1, "explosive": 0, "refusing": 0}
    # Every emotion's replies to the two messages are the same; two emotions' count apart.
    assert collapsed.openings == pytest.approx(len(EMOTIONS) / collapsed.replies)
    assert value(cells, circuits, "relevance") == 0.25
    assert find(cells, none, "anger", "positive") is not None

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["settings"]["decoding"]["temperature"] == 0
    assert summary["speed"]["replies"]["requests"] == 29
    assert 0 < summary["speed"]["replies"]["utilisation"] <= 1
    assert len(summary["cells"]) == len(cells)
    lines = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [line["labels"]["lexicon"] for line in lines if line["method"] == "none"] == [NEUTRAL, NEUTRAL]
    assert all(line["matches"]["lexicon"] == {line["emotion"]: True} for line in lines if line["method"] == "circuits")
    assert "| circuits 1 | 4 | 100.0 (34-100) |" in (tmp_path / "summary.md").read_text()
    page = (tmp_path / "page.html").read_text()
    assert SAYS["anger"] in page
    assert "http" not in page.replace("http-equiv", "")


def test_each_emotion_has_its_accuracy_on_the_messages_of_each_valence(stub: Stub, tmp_path: Path) -> None:
    cells = run(stub, tmp_path)
    circuits = Condition("circuits", 1.0, "")
    odd = find(cells, circuits, "fear", "negative")
    assert odd is not None
    changed = replace(odd, accuracy={"lexicon": Estimate(0.25, 0.1, 0.5, 4)})
    table = by_emotion_and_valence([changed if cell is odd else cell for cell in cells], "lexicon", list(EMOTIONS))
    assert table is not None
    assert table.head == ["method, strength", "emotion", "positive", "negative", "all"]
    rows = {(row[0], row[1]): row[2:] for row in table.rows}
    assert len(rows) == len(table.rows) == len({cell.condition for cell in cells}) * (len(EMOTIONS) + 1)
    assert rows["circuits 1", "fear"][1] == "25.0 (10-50)"
    assert [row for row in rows.values() if "25.0 (10-50)" in row] == [rows["circuits 1", "fear"]]
    assert all(cell.startswith("100.0 ") for cell in rows["prompting", "anger"])
    assert all(cell.startswith("0.0 ") for cell in rows["none", "anger"])
    # The last column and the last row of a method are those of the other tables.
    assert rows["circuits 1", "all"][2] == accuracy(find(cells, circuits), "lexicon")
    assert "Accuracy by emotion and the message's valence, judge lexicon" in (tmp_path / "summary.md").read_text()
    assert "Accuracy by emotion and the message&#39;s valence" in (tmp_path / "page.html").read_text()


def test_messages_of_one_valence_have_no_table_by_valence(stub: Stub, tmp_path: Path) -> None:
    alike = [replace(message, valence="positive") for message in MESSAGES]
    cells = run(stub, tmp_path, replace(ASKED, messages=alike))
    assert by_emotion_and_valence(cells, "lexicon", list(EMOTIONS)) is None
    assert "valence" not in (tmp_path / "summary.md").read_text()


class Shy(LexiconJudge):
    """Judges nothing that is furious: as behind a content filter."""

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]:
        verdicts = super().judge(texts, targets)
        return [
            Verdict.unjudged("filtered") if "furious" in text else verdict
            for text, verdict in zip(texts, verdicts, strict=True)
        ]


def test_replies_that_are_not_judged_are_told_and_count_as_neither(stub: Stub, tmp_path: Path) -> None:
    asked = replace(ASKED, methods=("none", "circuits"), strengths=(1.0,))
    cells = evaluate(Where(base_url=stub.url), asked, lambda emotions: [Shy(emotions)], tmp_path).cells
    circuits = find(cells, Condition("circuits", 1.0, ""))
    assert circuits is not None
    assert (circuits.replies, circuits.unjudged) == (4, {"lexicon": 2})
    estimate = circuits.accuracy["lexicon"]
    assert estimate is not None
    assert (estimate.value, estimate.count) == (1, 2)
    anger = find(cells, Condition("circuits", 1.0, ""), "anger")
    assert anger is not None
    assert anger.accuracy == {"lexicon": None}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["unjudged"] == {"lexicon": {"replies": 2, "first_reason": "filtered"}}
    table = (tmp_path / "summary.md").read_text()
    assert "| circuits 1 | 4 | 100.0 (34-100) of 2 | 2 |" in table
    assert "could not judge 2 of 6 replies" in table
    assert "not judged" in (tmp_path / "page.html").read_text()
    lines = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [line["matches"]["lexicon"] for line in lines if line["emotion"] == "anger"] == [{"anger": None}] * 2


def test_an_evaluation_of_which_nothing_is_judged_is_an_error(stub: Stub, tmp_path: Path) -> None:
    stub.answer = lambda request: answer({**request, "emotion": "anger"} if "messages" in request else request)
    with pytest.raises(JudgeError, match="judge lexicon could judge none of 8 replies, the first because: filtered"):
        evaluate(
            Where(base_url=stub.url),
            replace(ASKED, methods=("none", "prompting")),
            lambda emotions: [Shy(emotions)],
            tmp_path,
        )


def test_an_interrupted_evaluation_goes_on_where_it_was(stub: Stub, tmp_path: Path) -> None:
    answers = iter(range(10))

    def dying(request: dict[str, Any]) -> bytes | int:
        return answer(request) if next(answers, None) is not None else 400

    stub.answer = dying
    with pytest.raises(EndpointError):
        run(stub, tmp_path)
    there = (tmp_path / "replies.jsonl").read_text().splitlines()
    assert 5 <= len(there) <= 10
    # The last line was being written.
    (tmp_path / "replies.jsonl").write_text("\n".join(there)[:-9])
    stub.answer = answer
    stub.requests.clear()
    cells = run(stub, tmp_path)
    assert sum("messages" in request for request in stub.requests) == 30 - (len(there) - 1)
    keys = [json.loads(line)["key"] for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert len({tuple(key) for key in keys}) == len(keys) == 30
    # Once more asks for nothing, and says the same.
    stub.requests.clear()
    assert run(stub, tmp_path) == cells
    assert stub.requests == []


def test_a_folder_of_other_settings_is_refused_unless_fresh(stub: Stub, tmp_path: Path) -> None:
    few = replace(ASKED, methods=("none", "circuits"))
    run(stub, tmp_path, few)
    with pytest.raises(StoredError, match=r"other settings: strengths, requests; .* --fresh"):
        run(stub, tmp_path, replace(few, strengths=(1.0,)))
    stub.pages = pages("e" * 64, 2.0)
    with pytest.raises(StoredError, match="other settings: circuit;"):
        run(stub, tmp_path, few)
    assert len(run(stub, tmp_path, few, fresh=True)) > 0


def test_a_busy_server_is_asked_again_and_never_too_much_at_once(stub: Stub, tmp_path: Path) -> None:
    stub.answer = in_turn(503, 429, answer)  # type: ignore[arg-type]
    first = stub.answer
    stub.answer = lambda request: reply if isinstance(reply := first(request), int) else answer(request)
    # Long enough for four requests to come meanwhile, on a busy machine too.
    stub.delay = 0.1
    run(stub, tmp_path)
    assert stub.most_busy == 4


def test_a_template_without_a_system_role_gets_it_in_the_message(stub: Stub, tmp_path: Path) -> None:
    stub.answer = lambda request: (
        400 if "messages" in request and request["messages"][0]["role"] == "system" else answer(request)
    )
    run(stub, tmp_path, replace(ASKED, methods=("none", "prompting")))
    merged = [request for request in stub.requests if len(request.get("messages", ())) == 1]
    assert {len(request["messages"]) for request in merged} == {1}
    assert all(message in str(merged) for message in ("Always reply in fear", MESSAGES[0].user))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("none", "magic")}, "no method magic"),
        ({"strengths": (1.0, 2.5)}, "strength 2.5 is over the circuit's maximum for anger, 2"),
        ({"strengths": (1.0, 1.0)}, "named twice"),
        ({"messages": []}, "no messages"),
        ({"scopes": ("", "reply")}, "no scope reply: choose from generation, prompt_last, all"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is(
    stub: Stub, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        run(stub, tmp_path, replace(ASKED, **change))
    assert stub.requests == []


def test_servers_without_steering_or_without_emotions_are_told_apart(stub: Stub, tmp_path: Path) -> None:
    stub.pages["/v1/emotions"]["methods"] = ["circuit"]
    with pytest.raises(EvaluationError, match="not started with steering"):
        run(stub, tmp_path)
    del stub.pages["/v1/emotions"]
    with pytest.raises(EvaluationError, match="no emotions are served there"):
        run(stub, tmp_path)


def test_the_key_goes_to_the_server_and_into_no_file(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-secret")
    where = Where(base_url=stub.url, key_variable="THE_KEY")
    evaluate(where, replace(ASKED, methods=("none", "circuits")), lexicon, tmp_path)
    assert {headers["authorization"] for headers in stub.headers} == {"Bearer sk-secret"}
    assert not any("sk-secret" in path.read_text() for path in tmp_path.iterdir())


def test_samples_are_drawn_at_random_and_by_their_seed() -> None:
    planned = tasks(
        [Message(f"m{i}", "positive", "x") for i in range(50)], EMOTIONS, load_style("paper"), METHODS, (1.0,)
    )

    class Keyed:
        def __init__(self, key: Key) -> None:
            self.key = key

    scored: Any = [Keyed(task.key) for task in planned]
    first = draw_samples(scored, 0)
    assert first == draw_samples(scored, 0) != draw_samples(scored, 1)
    assert len(set(first)) == 12
    assert {emotion for _, emotion in first} == set(EMOTIONS)
    assert [message for message, _ in first] != [f"m{i}" for i in range(12)]


@pytest.fixture
def two_circuits(stub: Stub) -> Stub:
    """A server of two circuits, which share anger."""
    stub.pages["/v1/emotions"] = {
        "data": [
            {"id": "a/anger", "circuit": "a", "max_strength": 2.0},
            {"id": "b/anger", "circuit": "b", "max_strength": 2.0},
            {"id": "fear", "circuit": "b", "max_strength": 2.0},
        ],
        "circuits": [{"id": "a", "digest": "a" * 64}, {"id": "b", "digest": "b" * 64}],
        "methods": ["circuit"],
    }
    return stub


def test_each_circuit_of_a_server_is_evaluated(two_circuits: Stub, tmp_path: Path) -> None:
    asked = replace(ASKED, methods=("none", "circuits"), strengths=(1.0,))
    cells = run(two_circuits, tmp_path, asked)
    sent = {request["emotion"] for request in two_circuits.requests if "messages" in request}
    assert sent == {"none", "a/anger", "b/anger", "fear"}
    for emotion in ("a/anger", "b/anger", "fear"):
        assert value(cells, Condition("circuits", 1.0, ""), "accuracy", emotion) == 1
        assert value(cells, Condition("none", 0.0, ""), "accuracy", emotion) == 0


def test_one_circuit_of_a_server_can_be_chosen(two_circuits: Stub, tmp_path: Path) -> None:
    asked = replace(ASKED, methods=("none", "circuits"), strengths=(1.0,))
    evaluate(Where(circuit="b", base_url=two_circuits.url), asked, lexicon, tmp_path)
    assert {request["emotion"] for request in two_circuits.requests} == {"none", "b/anger", "fear"}
    assert json.loads((tmp_path / "summary.json").read_text())["circuit"] == "b" * 64
    with pytest.raises(EvaluationError, match="no circuit 'c': give --circuit one of a, b"):
        evaluate(Where(circuit="c", base_url=two_circuits.url), asked, lexicon, tmp_path)


def test_a_server_behind_a_particular_gateway_is_asked_as_that_wants_it(stub: Stub, tmp_path: Path) -> None:
    gateway = filtering("late", newer_openai(answer))
    stub.answer = gateway
    cells = run(stub, tmp_path, replace(ASKED, methods=("none", "circuits"), strengths=(1.0,)))
    circuits = find(cells, Condition("circuits", 1.0, ""))
    assert circuits is not None
    # Of two messages one is kept back, and with it its replies.
    assert (circuits.replies, circuits.unjudged) == (4, {"lexicon": 2})
    assert value(cells, Condition("circuits", 1.0, ""), "accuracy") == 1
    assert circuits.words is not None
    assert circuits.words.count == 2
    told = json.loads((tmp_path / "summary.json").read_text())["refused"]
    assert ["max_tokens" in note or "temperature" in note for note in told] == [True, True]
    assert told[1] in (tmp_path / "summary.md").read_text()


def test_a_reply_is_what_follows_the_thinking(stub: Stub, tmp_path: Path) -> None:
    def thinking(request: dict[str, Any]) -> bytes:
        body = json.loads(answer(request))
        if "messages" in request:
            message = body["choices"][0]["message"]
            message["content"] = f"<think>not furious, not afraid</think>{message['content']}"
        return json.dumps(body).encode()

    stub.answer = thinking
    run(stub, tmp_path, replace(ASKED, methods=("none", "circuits"), strengths=(1.0,)))
    lines = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert {line["reply"] for line in lines} == set(SAYS.values())


def test_any_json_lines_are_messages(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"user": "Hello\\u2028there"}\n\n{"user": "Bye", "id": "x", "valence": "sad", "more": 1}\n')
    assert load_messages(path) == [Message("line-1", "untold", "Hello\u2028there"), Message("x", "sad", "Bye")]
    assert len(load_messages(path, 1)) == 1
    assert len(load_messages("sev-test", 2)) == 6
    path.write_text('{"user": "a"}\n{"user": ""}\n')
    with pytest.raises(DataError, match="line 2: user"):
        load_messages(path)


def test_the_test_set_is_known_by_its_messages() -> None:
    for name in ("sev-test", "closed"):
        assert overlaps_test_set([Message("mine", "positive", load_messages(name)[7].user)])
    assert not overlaps_test_set(load_messages("sev"))


@pytest.fixture
def sweep(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`sweep(**options)`: a calibration of a circuit in `tmp_path / "c"`, whose engine is the stub."""
    from support.circuits import random_circuit
    from support.models import tiny_model

    folder = random_circuit(tiny_model(tmp_path / "model"), tmp_path / "c", names=EMOTIONS)

    serve_by(stub, monkeypatch)

    def calibrate(asked: Asked = replace(ASKED, strengths=(0.5, 1.0, 1.5, 2.0)), **options: Any) -> Any:  # noqa: B008
        where = Where(str(tmp_path / "model"), str(folder))
        return calibration.calibrate(where, asked, lexicon, tmp_path / "out", **options)

    return calibrate


def test_a_calibration_writes_what_it_chose_and_nothing_else(sweep: Callable[..., Any], tmp_path: Path) -> None:
    before = load_circuit(tmp_path / "c")
    made = sweep(command="emovllm calibrate")
    after = load_circuit(tmp_path / "c")
    for emotion in after.spec.emotions:
        # All are equally accurate: the smallest; 2 is where replies collapse.
        assert (emotion.recommended, emotion.maximal) == (0.5, 1.5)
        assert emotion.scores["accuracy"] == 1
        assert emotion.scores["false_positives"] == 0
    assert after.spec.scope == before.spec.scope
    assert after.spec.tensors_sha256 == before.spec.tensors_sha256
    assert after.digest() != before.digest()
    told = after.spec.provenance["calibration"]
    assert told["lambdas"] == [0.5, 1.0, 1.5, 2.0]
    assert told["judge"]["name"] == "lexicon"
    assert {
        key: value for key, value in after.spec.provenance.items() if key != "calibration"
    } == before.spec.provenance
    assert (tmp_path / "out" / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    result = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert result["choices"]["anger"]["maximal"] == made.choices["anger"].maximal == 1.5


def test_a_calibration_goes_on_and_does_not_depend_on_the_last_one(
    stub: Stub, sweep: Callable[..., Any], tmp_path: Path
) -> None:
    sweep()
    first = load_circuit(tmp_path / "c")
    stub.requests.clear()
    sweep()
    assert stub.requests == []
    assert load_circuit(tmp_path / "c").digest() == first.digest()


def test_emotions_out_of_bounds_are_left_as_they_were(sweep: Callable[..., Any], tmp_path: Path) -> None:
    before = load_circuit(tmp_path / "c").spec.emotions
    made = sweep(bounds=Bounds(fluency=0.5))
    assert made.uncalibrated == EMOTIONS
    assert load_circuit(tmp_path / "c").spec.emotions == before


def test_nothing_is_tuned_on_the_test_set(stub: Stub, sweep: Callable[..., Any]) -> None:
    with pytest.raises(EvaluationError, match="of the test set"):
        sweep(replace(ASKED, messages=load_messages("sev-test", 1)))
    assert stub.requests == []


def test_the_papers_way_is_timed_on_the_same_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.circuits import random_circuit
    from support.models import tiny_model

    model = tiny_model(tmp_path / "model")
    circuit = random_circuit(model, tmp_path / "circuit", names=EMOTIONS)
    told = paper_way.measure(model, circuit, [[3, 4, 5], [6, 7]], "fear", 5)
    assert (told["requests"], told["output_tokens"]) == (2, 5)
    assert told["tokens_per_s"] == pytest.approx(10 / told["seconds"])
    assert told["with_start"] > told["seconds"]
    with pytest.raises(EmotionError, match="unknown emotion"):
        Baseline(model, str(circuit)).measure([[3]], [{"emotion": "joy"}], 5)
    # How a process tells that, tests/core/test_answering.py knows.
    said = '{"threads": 1}\n{"error": "EmotionError: unknown emotion"}\n'
    ended = subprocess.CompletedProcess([], 0, stdout=said, stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(EvaluationError, match=r"could not be timed: .*unknown emotion"):
        paper_way.measure(model, circuit, [[3]], "joy", 5)
