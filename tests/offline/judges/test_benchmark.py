"""Judges measured on texts whose labels are known."""

from __future__ import annotations

import json

import pytest

from emovllm.cli import main
from emovllm.errors import JudgeError
from emovllm_offline.data.labelled import Labelled
from emovllm_offline.judges.benchmark import FILE, Benchmark, benchmark
from emovllm_offline.judges.judge import Verdict

EMOTIONS = ("anger", "fear")


class Answering:
    """Says of a text what stands before its colon; "?" is not judged, "!" is whether the first label matches."""

    name = "answering"
    config = {"a": 1}  # noqa: RUF012

    def judge(self, texts, targets):
        answers = [text.split(":")[0] for text in texts]
        return [
            Verdict.unjudged("odd")
            if answer == "?"
            else Verdict(answer == "!", None, "")
            if answer in "!-"
            else Verdict(answer == target, answer, "")
            for answer, target in zip(answers, targets, strict=True)
        ]


def row(said: str, *label: str, register: str = "r", group: str | None = None) -> Labelled:
    return Labelled(text=f"{said}: text", label=label, register=register, group=group)


def test_accuracies_and_recalls_by_register():
    rows = [
        row("anger", "anger"),
        row("fear", "anger"),
        row("fear", "fear", "anger"),
        row("neutral", "neutral"),
        row("?", "fear"),
        row("fear", "anger", register="s"),
        row("!", "anger", register="s"),
    ]
    result = benchmark({"one": Answering()}, rows, EMOTIONS)
    first, second = result.figures
    assert (first.register_, first.texts, first.unjudged, first.accuracy, first.counts) == ("r", 5, 1, 0.75, False)
    assert first.recall == {"anger": 0.5, "fear": None, "neutral": 1.0}
    # Wilson's interval of three of four.
    assert (first.low, first.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert (second.register_, second.accuracy, second.recall["anger"]) == ("s", 0.5, 0.5)


def test_a_judge_counts_above_three_of_four():
    rows = [row("anger", "anger")] * 4 + [row("fear", "anger")]
    [figure] = benchmark({"one": Answering()}, rows, EMOTIONS).figures
    assert figure.counts


def test_texts_of_one_group_are_one_piece_of_evidence():
    rows = [row("anger" if g % 4 else "fear", "anger", group=str(g)) for g in range(20) for _ in range(10)]
    [grouped] = benchmark({"one": Answering()}, rows, EMOTIONS).figures
    [single] = benchmark({"one": Answering()}, [r.model_copy(update={"group": None}) for r in rows], EMOTIONS).figures
    assert grouped.accuracy == single.accuracy == 0.75
    assert grouped.high - grouped.low > 2 * (single.high - single.low)


def test_two_judges_are_compared_in_each_register():
    class Other(Answering):
        def judge(self, texts, targets):
            return [Verdict(target == "anger", "anger", "") for target in targets]

    rows = [row("anger", "anger"), row("fear", "fear"), row("anger", "fear")]
    result = benchmark({"one": Answering(), "other": Other(), "same": Answering()}, rows, EMOTIONS)
    assert result.kappa == {"r": {"one, other": 0.0, "one, same": 1.0, "other, same": 0.0}}


def test_a_judge_that_can_judge_nothing_is_told():
    with pytest.raises(JudgeError, match="none of 1"):
        benchmark({"one": Answering()}, [row("?", "anger")], EMOTIONS)


def test_the_command_measures_a_panel_beside_its_members(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    texts = tmp_path / "letters.jsonl"
    rows = [
        ("I am furious, how dare you!", "anger"),
        ("I'm terrified of what comes.", "fear"),
        ("It is oak.", "neutral"),
    ]
    texts.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    (tmp_path / "panel.toml").write_text('[[judge]]\nname = "lexicon"\n[[judge]]\nname = "local"\n')
    command = ["judge-benchmark", str(texts), "--judge", "panel", "--judge-panel", str(tmp_path / "panel.toml")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    result = Benchmark.model_validate_json((tmp_path / "out" / FILE).read_text())
    assert [figure.judge for figure in result.figures] == ["lexicon 1", "local 2", "panel"]
    assert {figure.register_ for figure in result.figures} == {"letters"}
    assert result.judges["panel"]["config"]["members"][1]["name"] == "local"
    assert "lexicon 1, local 2" in capsys.readouterr().out
    # What was judged is kept.
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.jsonl")}
    assert len(kept) == 2
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.jsonl")} == kept
    # Alone, its last members are not asked where the first agree.
    (tmp_path / "panel.toml").write_text(2 * '[[judge]]\nname = "lexicon"\n' + '[[judge]]\nname = "local"\n')
    assert main([*command, "--panel-alone", "--out", str(tmp_path / "alone")]) == 0
    [figure] = Benchmark.model_validate_json((tmp_path / "alone" / FILE).read_text()).figures
    assert figure.judge == "panel"
    lines = {path.name: len(path.read_text().splitlines()) for path in (tmp_path / "alone").glob("*.jsonl")}
    assert {"panel-1.jsonl": 3, "panel-2.jsonl": 3}.items() <= lines.items()
    assert not lines.get("panel-3.jsonl")
