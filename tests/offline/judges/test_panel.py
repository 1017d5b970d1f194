"""A panel of judges whose answers are known."""

from __future__ import annotations

from itertools import product

import pytest

from emovllm.errors import JudgeError
from emovllm_offline.judges.judge import CachedJudge, Verdict, make_judge
from emovllm_offline.judges.panel import BATCH, PanelJudge

EMOTIONS = ("anger", "fear")


class Saying:
    """Labels each text by a table; what is not in it, it cannot judge."""

    def __init__(self, name: str, labels: dict[str, str | None]) -> None:
        self.name, self.config, self.labels = name, {"labels": labels}, labels
        self.asked: list[str] = []

    def judge(self, texts, targets):
        self.asked += texts
        return [
            Verdict(self.labels[text] == target, self.labels[text], "")
            if text in self.labels
            else Verdict.unjudged("too long")
            for text, target in zip(texts, targets, strict=True)
        ]


def panel(*labels: dict[str, str | None]) -> PanelJudge:
    return PanelJudge([Saying(f"judge {number}", table) for number, table in enumerate(labels)])


@pytest.mark.parametrize(
    ("said", "label"),
    [
        (("anger", "anger", "fear"), "anger"),
        (("anger", "fear", "fear"), "fear"),
        (("anger", "fear", "neutral"), None),
        (("anger", "fear"), None),
        (("anger", "anger", "fear", "fear"), None),
    ],
)
def test_more_than_half_decide(said, label):
    [verdict] = panel(*({"a text": one} for one in said)).judge(["a text"], ["anger"])
    assert (verdict.label, verdict.match) == (label, label == "anger")
    assert verdict.judged
    needed = said[:2] if said[0] == said[1] and len(said) == 3 else said
    assert [f"judge {number} {one}" in verdict.reason for number, one in enumerate(said)] == [
        number < len(needed) for number in range(len(said))
    ]


def test_no_member_is_asked_about_what_the_others_have_decided():
    first, second = {"a": "fear", "b": "fear", "c": "anger"}, {"a": "fear", "b": "anger"}
    judge = panel(first, second, {"b": "anger", "c": "anger"})
    agreed, split, missing = judge.judge(["a", "b", "c"], ["fear"] * 3)
    assert [member.asked for member in judge.members] == [["a", "b", "c"], ["a", "b", "c"], ["b", "c"]]
    assert agreed == Verdict(True, "fear", "2 of 2: judge 0 fear, judge 1 fear; judge 2 not asked")
    assert split == Verdict(False, "anger", "2 of 3: judge 0 fear, judge 1 anger, judge 2 anger")
    # One that could not judge leaves it to the others.
    assert missing == Verdict(False, "anger", "2 of 2: judge 0 anger, judge 2 anger")


@pytest.mark.parametrize("members", [2, 3, 4, 5])
def test_who_is_spared_changes_no_label(members):
    labels = ("anger", "fear", "neutral", "unjudged")
    tables = list(product(labels, repeat=members))
    texts = ["-".join(row) for row in tables]
    said = [
        {text: row[number] for text, row in zip(texts, tables, strict=True) if row[number] != "unjudged"}
        for number in range(members)
    ]
    for row, verdict in zip(tables, panel(*said).judge(texts, ["fear"] * len(texts)), strict=True):
        votes = [label for label in row if label != "unjudged"]
        most = [label for label in set(votes) if 2 * votes.count(label) > len(votes)]
        assert verdict.judged == (len(votes) >= 2)
        assert verdict.label == (most[0] if most and verdict.judged else None)


def test_those_that_could_not_judge_have_no_vote():
    judge = panel({"a": "fear"}, {"a": "fear", "b": "fear"}, {"b": "anger"}, {})
    both, split = judge.judge(["a", "b"], ["fear", "fear"])
    assert (both.match, both.label) == (True, "fear")
    assert (split.judged, split.label) == (True, None)
    alone = panel({"a": "fear"}, {}).judge(["a"], ["fear"])[0]
    assert not alone.judged
    assert "too long" in alone.reason


def test_a_member_that_is_told_the_target_is_refused():
    with pytest.raises(JudgeError, match="judge 1 chooses no label"):
        panel({"a": "fear"}, {"a": None}).judge(["a"], ["fear"])


def test_an_empty_text_matches_nothing():
    assert panel({"": None}, {"": None}).judge([""], ["fear"]) == [Verdict(False, None, "empty reply")]


def test_an_interrupted_panel_keeps_what_its_members_were_paid_for(tmp_path):
    class Failing(Saying):
        def judge(self, texts, targets):
            if "last" in texts:
                raise RuntimeError("the endpoint is gone")
            return super().judge(texts, targets)

    texts = [f"text {number}" for number in range(BATCH)] + ["last"]
    known = dict.fromkeys(texts, "fear")
    first = CachedJudge(PanelJudge([Saying("a", known), Failing("b", known)]), tmp_path / "kept.jsonl")
    with pytest.raises(RuntimeError):
        first.judge(texts, ["fear"] * len(texts))
    again = [Saying("a", known), Saying("b", known)]
    assert all(v.match for v in CachedJudge(PanelJudge(again), tmp_path / "kept.jsonl").judge(texts, ["fear"] * 17))
    assert [member.asked for member in again] == [["last"], ["last"]]


def test_a_file_names_the_members(tmp_path):
    file = tmp_path / "panel.toml"
    file.write_text('[[judge]]\nname = "lexicon"\n[[judge]]\nname = "local"\n')
    judge = make_judge("panel", EMOTIONS, panel=str(file))
    assert [member.name for member in judge.members] == ["lexicon", "local"]
    assert judge.config["members"][1] == {"name": "local", "config": dict(judge.members[1].config)}
    [verdict] = judge.judge(["I am furious, how dare you!"], ["anger"])
    assert verdict == Verdict(True, "anger", "2 of 2: lexicon anger, local anger")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[judge]\n", "no TOML"),
        ('[[judge]]\nname = "local"\n', "at least 2"),
        ('judge = "local"\n', "at least 2"),
        ('[[judge]]\nname = "local"\n[[judge]]\nmodel = "m"\n', "needs a name"),
        ('[[judge]]\nname = "local"\n[[judge]]\nname = "panel"\n', "no member"),
        ('[[judge]]\nname = "local"\n[[judge]]\nname = "nobody"\n', "there is no judge 'nobody'"),
        ('[[judge]]\nname = "local"\n[[judge]]\nname = "lexicon"\ncolour = "red"\n', "no judge has an option colour"),
        ('[[judge]]\nname = "local"\n[[judge]]\nname = "llm"\n', "needs --judge-model"),
    ],
)
def test_a_wrong_file_is_told(tmp_path, text, why):
    file = tmp_path / "panel.toml"
    file.write_text(text)
    with pytest.raises(JudgeError, match=why):
        make_judge("panel", EMOTIONS, panel=str(file))


def test_a_panel_needs_its_file(tmp_path):
    with pytest.raises(JudgeError, match="needs --judge-panel"):
        make_judge("panel", EMOTIONS)
    with pytest.raises(JudgeError, match="nowhere"):
        make_judge("panel", EMOTIONS, panel=str(tmp_path / "nowhere.toml"))
