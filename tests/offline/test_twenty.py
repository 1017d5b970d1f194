"""Twenty emotions, of a style file: from the replies that they elicit to a circuit, its report and its evaluation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emovllm import load_circuit
from emovllm.cli import main
from emovllm.errors import JudgeError
from emovllm_offline import intervals
from emovllm_offline.data.sev import load_sev
from emovllm_offline.data.styles import load_style
from emovllm_offline.discovery.assembly import EXTRACTIONS
from emovllm_offline.discovery.elicit import load_replies
from emovllm_offline.discovery.survival import complete_groups
from emovllm_offline.evaluation import tables
from emovllm_offline.judges.judge import make_judge
from emovllm_offline.reporting import plots
from emovllm_offline.validation import figures
from support import evaluated
from support.circuits import random_circuit
from support.evaluated import serve_by
from support.models import tiny_chat_model, tiny_model
from support.stub import Stub, stub_server

STYLE = load_style("twenty")
NAMES = tuple(STYLE.emotions)
ASKING = {frame.system: emotion for emotion, frames in STYLE.emotions.items() for frame in frames}


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with stub_server() as stub:
        yield stub


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_chat_model(tmp_path_factory.mktemp("twenty") / "model", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word list of one word for each emotion: its name."""
    path = tmp_path_factory.mktemp("words") / "words.json"
    path.write_text(json.dumps({"threshold": 1, "emotions": {name: {"3": [name]} for name in NAMES}}))
    return path


@pytest.fixture(scope="module")
def elicited(stub: Stub, words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replies to six messages, that name the emotion they are asked for; of the first message none is calm."""
    record = load_sev("sev-small")[0]
    first = f"{record.scenario}\n{record.event.positive}"

    def write(request: dict[str, Any]) -> str:
        system, user = (message["content"] for message in request["messages"])
        if user == first and ASKING[system] == "calm":
            return "Well."
        return f"So much {ASKING[system]}: {user}"

    stub.answer = write
    out = tmp_path_factory.mktemp("replies") / "elicited"
    command = ["elicit", "writer", "--base-url", stub.url, "--style", "twenty", "--limit", "2", "--out", str(out)]
    assert main([*command, "--lexicon", str(words), "--minimum", "5"]) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("extract", ["generation", "comprehension"])
def test_elicited_replies_in_twenty_emotions_become_a_circuit_with_its_report(
    elicited: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], unrendered: None, extract: str
) -> None:
    replies = load_replies(elicited / "replies.jsonl")
    assert len(replies) == 20 * 6
    assert len(complete_groups(replies)) == 5  # of one event the calm reply was not accepted
    out = tmp_path / "circuit"
    given = ["--style", "twenty", "--limit", "2", "--replies", str(elicited), "--importance-prompts", "1"]
    assert main(["discover", model, *given, "--extract", extract, "--out", str(out)]) == 0
    circuit = load_circuit(out)
    assert circuit.names == NAMES
    assert circuit.spec.provenance["groups"] == 5
    assert circuit.spec.provenance["extraction"] == EXTRACTIONS[extract]  # type: ignore[index]
    assert all(np.abs(circuit.neurons[name].delta).max() > 0 for name in NAMES)
    assert main(["validate", str(out), "--model", model, "--style", "twenty", "--limit", "2", "--seeds", "2"]) == 0
    assert main(["report", str(out)]) == 0
    page = (tmp_path / "circuit.work" / "report.html").read_text()
    assert all(name in page for name in NAMES)
    assert extract in page
    capsys.readouterr()
    assert main(["show", str(out)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)


@pytest.fixture
def served(stub: Stub, monkeypatch: pytest.MonkeyPatch, unrendered: None) -> Stub:
    """In the place of the engine: names the emotion, and says so over and over where its strength is above 1.5."""
    monkeypatch.setattr(evaluated, "EMOTIONS", NAMES)
    monkeypatch.setattr(
        evaluated, "SAYS", {"": "That is good to know.", **{name: f"So much {name}." for name in NAMES}}
    )
    monkeypatch.setattr(intervals, "RESAMPLES", 20)
    monkeypatch.setattr("emovllm_offline.judges.embeddings.relevance", lambda users, replies: np.full(len(users), 0.25))
    stub.answer = evaluated.answer
    serve_by(stub, monkeypatch)
    return stub


@pytest.mark.slow
def test_a_circuit_of_twenty_emotions_is_calibrated_and_evaluated(
    served: Stub, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(tmp_path / "model")
    circuit = random_circuit(model, tmp_path / "circuit", names=NAMES)
    data = tmp_path / "mine.jsonl"
    data.write_text('{"user": "The bus came early."}\n{"user": "It came late."}\n')
    judging = ["--judge", "lexicon", "--lexicon", str(words), "--data", str(data), "--circuit", str(circuit)]
    assert main(["calibrate", model, *judging, "--prompt-style", "twenty", "--strengths", "1,2"]) == 0
    printed = capsys.readouterr().out
    assert "20 emotions calibrated" in printed
    assert {emotion.scores["accuracy"] for emotion in load_circuit(circuit).spec.emotions} == {1.0}
    out = tmp_path / "evaluated"
    methods = ["--methods", "none,prompting,circuits", "--strengths", "1", "--paper-way", "0"]
    assert main(["evaluate", model, *judging, "--prompt-style", "twenty", *methods, "--out", str(out)]) == 0
    markdown = (out / "summary.md").read_text()
    # Emotions have a row each, as they are too many to stand side by side.
    assert "| emotion | none | prompting | circuits 1 |" in markdown
    assert all(markdown.count(f"| {name} |") == 2 for name in NAMES)
    assert main(["evaluate", model, *judging, *methods, "--out", str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert "the style paper has no prompt for pride" in error
    assert "give --prompt-style" in error


def test_few_emotions_stand_side_by_side() -> None:
    cells: list[Any] = []
    few = tables.fluency_by_emotion(cells, NAMES[: tables.ACROSS])
    many = tables.fluency_by_emotion(cells, NAMES)
    assert list(few.head) == ["method, strength", *NAMES[: tables.ACROSS]]
    assert [row[0] for row in many.rows] == list(NAMES)


@pytest.mark.parametrize("judge", ["local", "lexicon"])
def test_a_judge_that_knows_six_names_those_that_it_cannot_judge(judge: str) -> None:
    with pytest.raises(JudgeError) as caught:
        make_judge(judge, NAMES)
    for name in NAMES[6:]:
        assert name in str(caught.value)
    assert "llm" in str(caught.value)


def test_replies_to_learn_from_must_have_every_emotion(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    circuit = random_circuit(tiny_model(tmp_path / "model"), tmp_path / "circuit", names=NAMES)
    assert main(["refine", model, "--circuit", str(circuit), "--out", str(tmp_path / "refined")]) == 2
    error = capsys.readouterr().err
    assert "has no reply in pride, shame" in error
    assert "give --replies" in error


def overlapping(boxes: Sequence[Any]) -> int:
    return sum(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("count", [2, 6, 10, 20])
def test_the_numbers_of_overlaps_have_room(count: int, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    circuit = load_circuit(random_circuit(model, tmp_path / "circuit", names=NAMES[:count]))
    drawn = figures.overlap(circuit)
    renderer = drawn.canvas.get_renderer()
    drawn.draw(renderer)
    for axes in drawn.axes[:2]:
        assert len(axes.texts) == count * count
        assert overlapping([text.get_window_extent(renderer) for text in axes.texts]) == 0
    assert len({(plots.colour(i), plots.marker(i)) for i in range(count)}) == count
