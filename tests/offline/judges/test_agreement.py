"""Cohen's kappa on cases done by hand, and the choice of judges by name."""

from __future__ import annotations

import pytest
from cyclopts import CoercionError

from emovllm.cli import app
from emovllm.errors import JudgeError
from emovllm_offline.commands.judging import JudgeOptions
from emovllm_offline.judges.agreement import Agreement, agreement, cohens_kappa
from emovllm_offline.judges.judge import CachedJudge, Verdict, judge_names, make_judge


def blind(labels, target="anger"):
    return [Verdict(label == target, label, "") for label in labels]


def told(matches):
    return [Verdict(match, None, "") for match in matches]


def test_kappa_of_a_textbook_table():
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: 0.7 observed, 0.5 by chance.
    a = ["y"] * 25 + ["n"] * 25
    b = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohens_kappa(a, b) == (0.7, pytest.approx(0.4))


@pytest.mark.parametrize(
    ("a", "b", "observed", "kappa"),
    [
        ("xyz", "xyz", 1, 1),
        ("xy", "yx", 0, -1),
        ("xxyy", "xyxy", 0.5, 0),
        ("xxx", "xxx", 1, None),
        ("xxx", "yyy", 0, 0),
        ("xxxy", "xxxx", 0.75, 0),
    ],
)
def test_kappa_of_small_cases(a, b, observed, kappa):
    assert cohens_kappa(a, b) == (observed, kappa)


def test_blind_judges_are_compared_by_label():
    a, b = blind(["anger", "fear", "fear", "neutral"]), blind(["anger", "sadness", "fear", "neutral"])
    found = agreement(a, b)
    # Chance: 1/4 * 1/4 (anger) + 2/4 * 1/4 (fear) + 1/4 * 1/4 (neutral).
    assert found == Agreement("label", 4, 0.75, pytest.approx((0.75 - 0.25) / 0.75))


def test_told_judge_is_compared_by_match():
    found = agreement(told([True, False, True, False]), blind(["anger", "fear", "sadness", "neutral"]))
    assert found == Agreement("match", 4, 0.75, pytest.approx(0.5))


def test_empty_reply_has_no_label_and_blind_judges_agree_on_that():
    a, b = blind(["anger", None, "fear"]), blind(["anger", None, "anger"])
    assert agreement(a, b) == Agreement("label", 3, pytest.approx(2 / 3), pytest.approx((2 / 3 - 1 / 3) / (2 / 3)))


def test_texts_that_one_judge_could_not_judge_are_left_out():
    gap = Verdict.unjudged("filtered")
    result = agreement([*blind(["anger", "fear"]), gap, *blind(["fear"])], [gap, *blind(["fear", "fear", "anger"])])
    assert (result.on, result.count, result.observed) == ("label", 2, 0.5)
    with pytest.raises(ValueError, match="both judges have judged"):
        agreement([gap], blind(["fear"]))


@pytest.mark.parametrize(("a", "b"), [([], []), (["anger"], ["anger", "fear"])])
def test_agreement_needs_verdicts_on_the_same_texts(a, b):
    with pytest.raises(ValueError, match=f"got {len(a)} and {len(b)}"):
        agreement(blind(a), blind(b))


# Judges by name


def judging(*words):
    _, bound, _ = app().parse_args(["evaluate", *words], exit_on_error=False, print_error=False)
    return bound.arguments["options"].judging if words else JudgeOptions()


def test_options_make_each_judge(tmp_path):
    for name in judge_names():
        model = "m" if name.startswith("openai") else None
        if name in ("hf", "llm", "panel"):
            continue  # which tests of their own make of tiny models, and of a file
        judge = JudgeOptions(judge_model=model).make(name, ["anger", "fear"], tmp_path / "judged.jsonl", 2)
        assert isinstance(judge, CachedJudge)
        assert judge.name == name


def test_options_that_do_not_fit_are_told():
    with pytest.raises(JudgeError, match="--judge openai-blind needs --judge-model"):
        JudgeOptions().make("openai-blind", ["anger"], None, 1)
    with pytest.raises(JudgeError, match="there is no judge 'oracle', only hf, lexicon, llm, local"):
        make_judge("oracle", ["anger"])


@pytest.mark.parametrize("text", ["joy", "joy=", "a=b=c", ""])
def test_label_names_are_pairs(text):
    with pytest.raises(CoercionError, match="expected THEIRS=OURS"):
        judging("--judge-labels", text)


def test_label_names_are_read():
    assert judging("--judge-labels", "Joy=happiness, LABEL_1=anger").judge_labels == {
        "joy": "happiness",
        "label_1": "anger",
    }
    assert judging().judge_labels is None
