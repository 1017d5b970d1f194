"""A whole build on a tiny model, whose engine is a server that answers by rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from emovllm.card import LIMIT, TAGS
from emovllm.circuit_files import load_circuit
from emovllm.probe import load_probe
from emovllm_offline.building import folder
from emovllm_offline.commands.own_replies import OwnRepliesOptions
from emovllm_offline.data.styles import load_style
from support.built import Place, counting, lines, obeying, without_fear
from support.evaluated import EMOTIONS, SAYS, answer
from support.stub import Stub
from support.walk import STYLE

pytestmark = pytest.mark.usefixtures("quick")

WHOLE = ["elicit", "prompt", "discover", "refine", "probe", "calibrate", "evaluate"]


def test_a_model_that_does_not_obey_learns_from_written_replies_and_its_circuit_is_told_of(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A tiny model learns little in one pass.
    monkeypatch.setattr(folder, "PAYS", 0.0)
    assert place() == 0
    printed = capsys.readouterr()
    assert place.done() == WHOLE
    assert "the model obeys in no emotion: it learns from written replies" in place.notes("prompt")
    assert "whatever the model replies" in place.notes("discover")
    assert "written replies" in place.notes("refine")
    assert "2 of 2 emotions show beyond chance, by the judge lexicon on 3 replies each: anger, fear." in printed.out
    for planned in ("| elicit", "| calibrate", "in all"):
        assert planned in printed.out.replace("│", "|")

    circuit = load_circuit(place.out)
    assert circuit.names == EMOTIONS
    assert circuit.spec.provenance["refinements"][0]["command"].startswith("emovllm refine model --circuit circuit")
    assert circuit.spec.provenance["calibration"]["data"]["messages"] == 3
    assert load_probe(place.out).spec.labels == EMOTIONS

    card = (place.out / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head) == {"library_name": "emovllm", "tags": list(TAGS)}
    # A folder is no id of the hub's.
    assert "emovllm serve MODEL --circuit DIR --readout" in body
    assert 'Then send `"emotion": "anger"`' in body
    assert "2 of 2 emotions show beyond chance" in body
    assert body.rstrip().endswith(LIMIT)
    assert f"digest {circuit.digest()[:16]}" in body
    assert "| anger | 100.0 (44-100) | 33 |" in body
    assert str(place.out.parent) not in card

    page = (place.out / "page.html").read_text()
    assert SAYS["anger"] in page
    assert "emovllm discover model --data learn.jsonl" in page
    assert "emovllm calibrate model --circuit circuit" in page
    assert "What to do where one fails" not in page
    assert str(place.out.parent) not in page
    assert "http" not in page


def test_a_model_that_obeys_is_discovered_and_refined_by_its_own_replies(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    obeying(monkeypatch)
    ran = counting(monkeypatch, {"probe train"})
    assert place() == 130
    assert ran == ["elicit", "elicit", "discover", "refine", "probe train"]
    assert "style asking: 100% of the replies accepted, obeyed in anger, fear" in place.notes("elicit")
    assert "on 24 scenario-events to which it replied in every emotion" in place.notes("discover")
    assert "the model's own replies in anger, fear where they were accepted" in place.notes("refine")
    learnt = [json.loads(line) for line in (place.work / "refine" / "replies.jsonl").read_text().splitlines()]
    assert {row["replies"]["anger"] for row in learnt[:24]} == {SAYS["anger"]}
    found = load_circuit(place.work / "discover" / "circuit")
    assert found.spec.provenance["filtered by a judge"]


def test_an_interrupted_build_goes_on_and_does_nothing_twice(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = counting(monkeypatch, {"refine", "evaluate"})
    assert place() == 130
    assert f"interrupted; the same command goes on from {place.work}" in capsys.readouterr().err
    assert place.done() == ["elicit", "prompt", "discover"]
    assert not place.out.exists()
    sizes, spent = place.state()["sizes"], place.state()["stages"]["refine"]["minutes"]
    assert spent > 0
    assert place() == 130
    assert place.done() == WHOLE[:-1]
    assert place() == 0
    made = ["elicit", "discover", "refine", "refine", "probe train", "calibrate"]
    assert ran == [*made, "evaluate", "evaluate"]
    assert place.state()["sizes"] == sizes
    assert place.state()["stages"]["refine"]["minutes"] > spent
    # Once more runs nothing, asks no judge, and writes the same.
    card, before = (place.out / "README.md").read_bytes(), list(ran)
    with monkeypatch.context() as patch:
        patch.delattr("emovllm_offline.building.run.judging_seconds")
        assert place() == 0
    assert ran == before
    assert (place.out / "README.md").read_bytes() == card
    scored = place.work / "evaluate" / "run" / "scored.jsonl"
    scored.write_text('{"message": "m"}\n')
    assert place() == 2
    assert "scored.jsonl, line 1: emotion: missing" in capsys.readouterr().err
    # Other settings are refused by name, unless it begins anew.
    assert place("--engine-args", "--enforce-eager") == 2
    assert "made with other settings: engine; give the same again to go on, or give --fresh" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("better", [True, False])
def test_another_round_with_its_own_replies_is_taken_where_it_is_calibrated_as_accurate(
    place: Place, stub: Stub, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    counting(monkeypatch, set())
    monkeypatch.setattr(folder, "PAYS", 0.0)

    def own(options: OwnRepliesOptions) -> None:
        """In place of an engine's: the replies as they are given; what is asked then is not answered so well."""
        assert load_circuit(options.circuit).spec.provenance["calibration"]
        options.out.parent.mkdir(parents=True)
        options.out.write_bytes(Path(options.settings.replies).read_bytes())
        if not better:
            stub.answer = lambda asked: answer(
                {**asked, "emotion": "none"} if asked.get("emotion") == "fear" else asked
            )

    monkeypatch.setitem(folder.COMMANDS, "own-replies", own)
    assert place("--effort", "thorough") == (0 if better else 1)
    assert place.notes("again").endswith(
        "accuracy in calibration 100% before, 100% after: taken"
        if better
        else "accuracy in calibration 100% before, 50% after: not taken"
    )
    assert len(load_circuit(place.out).spec.provenance["refinements"]) == (2 if better else 1)
    assert load_probe(place.out).spec.labels == EMOTIONS


def test_an_emotion_that_does_not_show_is_told_with_what_to_do(
    place: Place, stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.answer = without_fear
    assert place() == 1
    told = "fear does not show beyond chance: 0% of 3 replies by the judge lexicon, 95% interval 0% to 56% (Wilson)"
    page, card = ((place.out / name).read_text() for name in ("page.html", "README.md"))
    assert all(f"{told}; chance 33%" in text for text in (page, card, capsys.readouterr().out))
    assert "1 of 2 emotions show beyond chance, by the judge lexicon on 3 replies each: anger." in card
    assert "no strength kept its bounds" in page
    assert "another style: the model was not seen to obey when asked; --emotions FILE" in page
    assert "anger does not" not in page
    # That bounds were loosened to no avail leaves the tightest.
    assert load_circuit(place.out).spec.provenance["calibration"]["bounds"]["fluency"] == 2.0
    assert "less than half in fear" in place.notes("calibrate")
    assert "- evaluate: 3 messages that nothing was learnt from or chosen by" in card


def test_a_plan_alone_measures_and_runs_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place("--plan") == 0
    assert "about minutes" in capsys.readouterr().out
    assert not place.work.exists()
    assert not place.out.exists()
    # With fewer minutes than the least takes there is no plan.
    assert place("--minutes", "0.1") == 2
    assert "the least that says something takes about" in capsys.readouterr().err


def test_a_plan_does_not_bind_what_is_built_later_and_a_default_is_what_it_stands_for(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counting(monkeypatch, {"elicit", "discover"})
    assert place("--plan") == 0
    assert place("--effort", "normal") == 130
    state = place.state()
    assert (state["settings"]["effort"], list(state["stages"])) == ("normal", ["elicit"])
    assert min(state["speed"][name] for name in ("load", "token", "step")) > 0
    assert (state["speed"]["layers"], state["speed"]["hidden"]) == (3, 64)
    # Without an effort it is the same, and goes on; what was begun is held to.
    assert place.default() == 130
    assert place.done() == ["elicit", "prompt"]
    assert place("--plan", "--effort", "quick") == 2
    assert "made with other settings: effort" in capsys.readouterr().err
    assert place("--plan", "--effort", "normal", "--minutes", "1000") == 0
    # With minutes one that begins now is thorough; this one stays what it was.
    capsys.readouterr()
    assert place.default("--plan", "--minutes", "1000") == 0
    assert "messages, 3 times" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--emotions", "twenty", "--judge", "local", "--replies", "twenty.jsonl"),
            "the local judge does not know pride",
        ),
        (("--data", "few.jsonl"), "has 2 scenarios, and 15 are the least"),
        (("--engine-args", "'"), "--engine-args"),
        (("--probe-data", "nowhere.tsv"), "nowhere.tsv: No such file"),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_model_is_loaded(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(place.out.parent)
    Path("few.jsonl").write_text("".join(place.data.read_text().splitlines(keepends=True)[:2]))
    lines(Path("twenty.jsonl"), [_twenty(i) for i in range(9)])
    assert place(*words) == 2
    assert message in capsys.readouterr().err
    assert not place.work.exists()


def _twenty(number: int) -> dict[str, Any]:
    return {"id": str(number), "user": f"Day {number}.", "replies": dict.fromkeys(load_style("twenty").emotions, "So.")}


def test_a_model_that_is_refused_is_refused_at_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(place.model) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "jamba"}))
    assert place() == 2
    assert "no circuit of it can be served" in capsys.readouterr().err


def test_a_style_of_replies_alone_is_not_tried(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.style.write_text(json.dumps(STYLE))
    assert place("--plan") == 0
    printed = capsys.readouterr().out
    assert "discover" in printed
    assert "elicit" not in printed
