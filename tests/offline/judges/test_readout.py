"""The judge of what was read, on readings done by hand; and where it is refused."""

from __future__ import annotations

import pytest
from cyclopts import ValidationError

from emovllm.cli import app
from emovllm.errors import JudgeError
from emovllm_offline.judges.judge import Verdict, make_judge
from emovllm_offline.judges.readout import ReadoutJudge


@pytest.mark.parametrize(
    ("read", "match", "label"),
    [
        ({"anger": 0.3, "fear": 0.1, "neutral": 0.6}, True, "anger"),
        ({"anger": 0.3, "fear": 0.4, "neutral": 0.3}, False, "fear"),
        # No emotion leads: two are as likely.
        ({"anger": 0.4, "fear": 0.4, "neutral": 0.2}, False, "anger"),
        ({"anger": 0.1, "neutral": 0.9}, True, "anger"),
        ({"anger": 0.2, "awe": 0.8}, False, "awe"),
    ],
)
def test_a_reply_is_what_leads_among_all_labels_but_neutral(read, match, label):
    (verdict,) = ReadoutJudge().judge_read([read], ["anger"])
    assert (verdict.match, verdict.label, verdict.judged) == (match, label, True)
    assert verdict.reason == f"{label} {read[label]:.2f}"


def test_what_has_no_label_and_what_was_not_read_are_not_judged():
    read = {"anger": 0.3, "neutral": 0.7}
    lacking, unread = ReadoutJudge().judge_read([read, {}], ["fear", "anger"])
    assert lacking == Verdict(False, "anger", "the probe has no label fear", judged=False)
    assert not unread.judged
    assert "nothing was read" in unread.reason


def test_it_is_no_judge_of_texts(tmp_path):
    with pytest.raises(JudgeError, match="only `emovllm evaluate` has them"):
        make_judge("readout", ["anger"])
    panel = tmp_path / "panel.toml"
    panel.write_text('[[judge]]\nname = "lexicon"\n[[judge]]\nname = "readout"\n')
    with pytest.raises(JudgeError, match="only `emovllm evaluate` has them"):
        make_judge("panel", ["anger"], panel=str(panel))


@pytest.mark.parametrize(
    "words",
    [
        ("elicit", "--out", "OUT"),
        ("calibrate", "--circuit", "DIR"),
        ("judge-benchmark", "texts.jsonl", "--out", "OUT"),
    ],
)
def test_commands_of_texts_refuse_it(words):
    with pytest.raises(ValidationError, match="reads the states in which a model writes: only `emovllm evaluate`"):
        app().parse_args([*words, "--judge", "readout"], exit_on_error=False, print_error=False)


def test_evaluate_takes_it_beside_others():
    _, bound, _ = app().parse_args("evaluate --judge local,readout", exit_on_error=False, print_error=False)
    assert bound.arguments["options"].judge == ("local", "readout")
    with pytest.raises(ValidationError, match=r"no judge oracle: choose from .*panel, readout"):
        app().parse_args("evaluate --judge oracle,readout", exit_on_error=False, print_error=False)
