"""Evaluations beside each other, of a server that answers by rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emovllm.errors import ResultsError
from emovllm_offline import compare
from emovllm_offline.comparison.report import figure_table
from emovllm_offline.data.messages import Message
from emovllm_offline.data.styles import load_style
from emovllm_offline.evaluation.evaluate import evaluate
from emovllm_offline.evaluation.plan import Asked
from emovllm_offline.evaluation.results import Summary
from emovllm_offline.evaluation.summary import ALL, Cell, Condition, find
from emovllm_offline.evaluation.target import Where
from emovllm_offline.judges.judge import Judge
from emovllm_offline.judges.lexicon import LexiconJudge
from support.evaluated import DIGEST, EMOTIONS
from support.stub import Stub

pytestmark = pytest.mark.usefixtures("quick")

MESSAGES = [Message("a", "neutral", "The bus came early."), Message("b", "neutral", "The bus came late.")]
ASKED = Asked(MESSAGES, load_style("paper"), ("none", "circuits"), (1.0,), 100)


class Other(LexiconJudge):
    """The same words, told by another name."""

    name = "other"


def run(stub: Stub, out: Path, asked: Asked = ASKED, judge: type[LexiconJudge] = LexiconJudge) -> Sequence[Cell]:
    def judges(emotions: Sequence[str]) -> list[Judge]:
        return [judge(emotions)]

    return list(evaluate(Where(base_url=stub.url, concurrency=4), asked, judges, out).cells)


def rows(*runs: str | Path) -> list[dict[str, str]]:
    table = figure_table(compare(runs).comparison.of("evaluate"))
    return [dict(zip(table.head, row, strict=True)) for row in table.rows]


def test_each_method_of_each_run_has_a_row_with_its_judges_figure(stub: Stub, tmp_path: Path) -> None:
    cells = run(stub, tmp_path / "one")
    run(stub, tmp_path / "two", judge=Other)
    found = rows(tmp_path / "one", tmp_path / "two")
    assert [(row["run"], row["method, strength"]) for row in found] == [
        ("m (one)", "none"),
        ("m (one)", "circuits 1"),
        ("m (two)", "none"),
        ("m (two)", "circuits 1"),
    ]
    circuits = find(cells, Condition("circuits", 1.0, ""))
    assert circuits is not None
    accuracy, perplexity = circuits.accuracy["lexicon"], circuits.perplexity
    assert accuracy is not None
    assert perplexity is not None
    assert found[1]["accuracy, lexicon"] == f"1 [{accuracy.low:.3g}, 1]"
    assert found[1]["perplexity"] == f"{perplexity.value:.3g} [{perplexity.low:.3g}, {perplexity.high:.3g}]"
    assert (found[1]["accuracy, other"], found[3]["accuracy, lexicon"]) == ("-", "-")
    assert [row["n"] for row in found[:2]] == ["2", str(2 * len(EMOTIONS))]
    assert {row["circuit"] for row in found} == {DIGEST[:8]}
    assert {row["size"] for row in found} == {"-"}


def test_what_was_not_made_alike_is_told(stub: Stub, tmp_path: Path) -> None:
    run(stub, tmp_path / "one")
    alike = compare([tmp_path / "one"]).notes
    run(stub, tmp_path / "two", replace(ASKED, messages=MESSAGES[:1], max_tokens=50))
    more = [note for note in compare([tmp_path / "one", tmp_path / "two"]).notes if note not in alike]
    assert [note.partition(" are not comparable")[0] for note in more[:1]] == ["evaluate: Figures of different texts"]
    assert "`decoding` in evaluate.json" in more[1]
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    summary["judges"]["lexicon"] = {"words": "others"}
    (tmp_path / "two" / "summary.json").write_text(json.dumps(summary))
    more = [note for note in compare([tmp_path / "one", tmp_path / "two"]).notes if note not in alike]
    assert [note.partition(":")[2] for note in more] == [
        " The judge lexicon is not set up alike in all runs: its figures are not comparable."
    ]


def test_a_summary_is_read_as_it_was_written(stub: Stub, tmp_path: Path) -> None:
    cells = run(stub, tmp_path)
    summary = Summary.load(tmp_path)
    assert list(summary.cells) == cells
    assert {cell.emotion for cell in summary.cells} == {ALL, *EMOTIONS}
    # Files of before had no format.
    path = tmp_path / "summary.json"
    content: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if not name.startswith("format")}))
    assert Summary.load(tmp_path) == summary
    path.write_text(json.dumps({**content, "format_version": 2}))
    with pytest.raises(ResultsError, match=r"summary\.json: format_version: Input should be 1"):
        Summary.load(tmp_path)
