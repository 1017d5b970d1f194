"""A build whose strengths one judge chooses, and that another measures."""

from __future__ import annotations

import json

import pytest

from emovllm.circuit_files import load_circuit
from emovllm_offline.discovery.elicit import REPLIES, load_replies
from emovllm_offline.evaluation.results import Summary
from support.built import Place, counting
from support.stub import Stub

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def panel(place: Place) -> tuple[str, ...]:
    """Two word lists that know another word of fear than is said."""
    words = {"threshold": 1.0, "emotions": {"anger": {"2": ["furious"]}, "fear": {"2": ["petrified"]}}}
    folder = place.out.parent
    (folder / "words.json").write_text(json.dumps(words))
    member = f'[[judge]]\nname = "lexicon"\nlexicon = "{folder / "words.json"}"\n'
    (folder / "panel.toml").write_text(2 * member)
    return "--judge-panel", str(folder / "panel.toml")


def test_the_first_judge_chooses_and_the_last_one_is_told(
    place: Place, panel: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert place("--judge", "lexicon,panel", *panel) == 1
    assert list(Summary.load(place.work / "evaluate" / "run").judges) == ["lexicon", "panel", "readout"]
    calibration = load_circuit(place.out).spec.provenance["calibration"]
    assert (calibration["judge"]["name"], calibration["uncalibrated"]) == ("lexicon", [])
    assert {reply.judge for reply in load_replies(place.work / "elicit" / "asking" / REPLIES)} == {"lexicon"}
    ran = place.state()["stages"]
    assert "--judge lexicon --judge-panel" in ran["calibrate"]["commands"][0]
    assert "--judge lexicon,panel,readout" in ran["evaluate"]["commands"][0]

    said = "1 of 2 emotions show beyond chance, by the judge panel on 3 replies each: anger."
    chose = "The judge lexicon chose the strengths, on other messages."
    fear = "fear does not show beyond chance: 0% of 3 replies by the judge panel"
    page, card = ((place.out / name).read_text() for name in ("page.html", "README.md"))
    for text in (page, card, capsys.readouterr().out):
        assert f"{said} {chose}" in text
        assert fear in text
        assert "chance 33%; 100% by lexicon, which chose" in text
    assert "also chose the strengths" not in page
    assert "| emotion | shown, panel | lexicon, which chose | chance |" in card
    assert "| fear | 0.0 (0-56) | 100.0 (44-100) | 33 |" in card
    assert "the judge lexicon, which chose the strengths, is no stranger to them" in card


def test_judges_are_settings_and_part_of_the_plan(
    place: Place, panel: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert place("--plan", "--judge", "lexicon,panel", *panel) == 0
    assert "by, 2 judges" in " ".join(capsys.readouterr().out.split())
    # Each is made before anything long begins, wherever it stands.
    for judges in ("panel,lexicon", "lexicon,panel"):
        assert place("--judge", judges) == 2
        assert "--judge panel needs --judge-panel" in capsys.readouterr().err
    assert place("--judge", "lexicon,readout") == 2
    assert "only `emovllm evaluate` has them" in " ".join(capsys.readouterr().err.split())


def test_a_build_is_measured_again_by_other_judges_and_nothing_else_is_done_again(
    place: Place,
    panel: tuple[str, ...],
    stub: Stub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran = counting(monkeypatch, set())
    assert place() == 0
    done, asked = len(ran), len(stub.requests)
    # A plan binds nothing, and tells what is to be done.
    assert place("--plan", "--judge", "lexicon,panel", *panel) == 0
    assert place.done()[-1] == "evaluate"
    assert place("--judge", "lexicon,panel", *panel) == 1
    assert ran[done:] == ["evaluate"]
    assert len(stub.requests) == asked
    assert "evaluate: 3 messages that nothing was chosen by, 2 judges, going on" in capsys.readouterr().err
    assert "1 of 2 emotions show beyond chance, by the judge panel" in (place.out / "page.html").read_text()
    assert place.state()["settings"]["measured by"] == [{"name": "panel", "panel": panel[1]}]
    # And by the first alone; another that chooses would have to choose anew.
    assert place() == 0
    assert ran[done:] == ["evaluate", "evaluate"]
    assert "2 of 2 emotions show beyond chance, by the judge lexicon" in (place.out / "page.html").read_text()
    assert place("--judge", "panel,lexicon", *panel) == 2
    assert "made with other settings: judge; give the same" in " ".join(capsys.readouterr().err.split())
    assert ran[done:] == ["evaluate", "evaluate"]


def test_what_a_judge_is_not_asked_with_is_no_setting_of_it(place: Place, panel: tuple[str, ...]) -> None:
    assert place() == 0
    # The word list has no member, so that it chose as it would with them.
    assert place("--judge", "lexicon", *panel) == 0
    assert place.state()["settings"]["judge"] == [{"name": "lexicon"}]
