"""The card of a circuit: what was measured is told, of this circuit alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from emovllm.circuit_files import load_circuit
from emovllm.cli import main
from emovllm.models import NAME, shipped_circuits
from emovllm_offline.data.side_effects import load_items
from emovllm_offline.evaluation.card import measured_card
from emovllm_offline.evaluation.side_effects import measure
from emovllm_offline.evaluation.target import Where
from support.evaluated import EMOTIONS, pages
from support.stub import Stub

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped_circuits() / NAME, tmp_path / "circuit", ignore=shutil.ignore_patterns("*.md")))


def evaluated(stub: Stub, folder: Path, out: Path) -> None:
    """A server of this circuit, in two of its emotions."""
    stub.pages = pages(load_circuit(folder).digest(), 2.0)
    data = out.with_name("messages.jsonl")
    data.write_text('{"user": "The bus came late."}\n{"user": "The bus came early."}\n')
    asked = ["evaluate", "--base-url", stub.url, "--data", str(data), "--judge", "lexicon,local", "--strengths", "1"]
    assert main([*asked, "--methods", "none,prompting,circuits", "--out", str(out)]) == 0


def test_the_card_tells_what_was_measured_and_what_was_not(
    stub: Stub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(stub, folder, tmp_path / "evaluated")
    measure(
        Where(base_url=stub.url), load_items(limit=1), (1.0,), tmp_path / "costs", command="emovllm side-effects"
    ).save(tmp_path / "costs")
    told = ["--evaluation", str(tmp_path / "evaluated"), "--side-effects", str(tmp_path / "costs")]
    assert main(["card", str(folder), *told, "--repository", "me/mine"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(folder / "README.md")
    card = (folder / "README.md").read_text()
    assert "--circuit me/mine --readout" in card
    assert "m, on 2 messages, replies of at most 100 tokens, by method and strength" in card
    assert "By the judge local, which chose the strengths too:" in card
    assert "By the judge lexicon:" in card
    assert f"| method, strength | {' | '.join(EMOTIONS)} |" in card
    assert "| circuits 1 | 100.0 (" in card
    assert "Measured by `emovllm evaluate " in card
    assert "## Side effects\n\n7 items, 2 emotions. At strength 1" in card
    assert "| arithmetic | 1 | 0 (" in card
    assert "Measured by `emovllm side-effects`" in card
    assert "was not measured: `emovllm" not in card
    assert "does not say how well the circuit steers" not in card

    # What is there is written over only when asked for, and what was not measured is said.
    assert main(["card", str(folder)]) == 2
    assert "give --replace" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == card
    assert main(["card", str(folder), "--replace"]) == 0
    bare = (folder / "README.md").read_text()
    assert "How well it steers was not measured: `emovllm evaluate` does." in bare
    assert "refusals was not measured: `emovllm side-effects` does." in bare
    assert "## Side effects" not in bare


def test_results_of_another_circuit_are_refused(
    stub: Stub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.pages = pages("e" * 64, 2.0)
    measure(Where(base_url=stub.url), load_items(limit=1), (1.0,), tmp_path / "costs").save(tmp_path / "costs")
    assert main(["card", str(folder), "--side-effects", str(tmp_path / "costs")]) != 0
    assert f"the side effects are of another circuit, {'e' * 12}" in capsys.readouterr().err
    assert not (folder / "README.md").exists()


def test_a_probe_is_told_of_where_there_is_one(folder: Path) -> None:
    circuit = load_circuit(folder)
    assert "--readout" in measured_card(circuit, "DIR", None, None, probe=True)
    assert "--readout" not in measured_card(circuit, "DIR", None, None)


def test_the_shipped_card_is_of_the_shipped_circuit() -> None:
    """Its figures are those of the circuit that lies beside it."""
    place = shipped_circuits() / NAME
    card = (place / "README.md").read_text()
    assert load_circuit(place).digest() in card
    assert "## How well it steers" in card
    assert "## Side effects" in card
