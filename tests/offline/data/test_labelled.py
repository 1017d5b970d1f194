"""Labelled texts: JSON lines and GoEmotions' table."""

from __future__ import annotations

import json

import pytest

from emovllm.errors import DataError
from emovllm_offline.data.labelled import by_register, draw, load_labelled
from emovllm_offline.judges.sentences import LABELS


def test_json_lines_have_one_or_several_labels(tmp_path):
    file = tmp_path / "replies.jsonl"
    rows = [
        {"text": "Hooray!", "label": "joy"},
        {"text": "Oh no.", "label": ["fear", "sadness"], "group": 7, "register": "letters"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    first, second = load_labelled(file)
    assert (first.label, first.group, first.register_) == (("happiness",), None, "replies")
    assert (second.label, second.group, second.register_) == (("fear", "sadness"), "7", "letters")
    assert {name: len(of) for name, of in by_register([first, second, first]).items()} == {"replies": 2, "letters": 1}


def test_the_table_of_goemotions_is_read_with_its_labels(tmp_path):
    (tmp_path / "labels.txt").write_text("anger\njoy\nneutral\n")
    file = tmp_path / "test.tsv"
    file.write_text('He said "go\t0\tabc\nFine, then.\t1,2\tdef\n')
    first, second = load_labelled(file)
    assert (first.text, first.label) == ('He said "go', ("anger",))
    assert (second.label, second.register_) == (("happiness", "neutral"), "test")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.jsonl", '{"text": "Hm."}', "line 1: label: missing"),
        ("a.jsonl", '{"text": " ", "label": "joy"}', "line 1: text"),
        ("a.jsonl", '\n{"text": "Hm.", "label": []}', "line 2: label"),
        ("a.jsonl", "", "no texts"),
        ("a.tsv", "Hm.\t9\tabc\n", "line 1: expected a text"),
        ("a.tsv", "Hm.\tjoy\tabc\n", "line 1: expected a text"),
        ("a.tsv", "Hm.\n", "line 1: expected a text"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, name, text, why):
    (tmp_path / "labels.txt").write_text("anger\n")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=why):
        load_labelled(tmp_path / name)


def test_a_table_without_its_labels_is_refused(tmp_path):
    (tmp_path / "a.tsv").write_text("Hm.\t0\tabc\n")
    with pytest.raises(DataError, match=r"labels\.txt"):
        load_labelled(tmp_path / "a.tsv")


def test_a_draw_is_the_same_each_time_and_keeps_the_order(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"text {i:02}", "label": "joy"}) for i in range(40)))
    rows = load_labelled(file)
    drawn = draw(rows, 10)
    assert drawn == draw(rows, 10)
    assert len(drawn) == 10
    assert [row.text for row in drawn] == sorted(row.text for row in drawn)
    assert draw(rows, 100) == draw(rows, None) == rows


def test_packaged_replies_are_of_several_registers_and_hold_every_label():
    rows = load_labelled("replies")
    assert len({row.text for row in rows}) == len(rows) > 500
    assert {label for row in rows for label in row.label} == set(LABELS)
    assert {name for name, of in by_register(rows).items() if len(of) > 60} == {
        "default circuit, SmolLM2-135M",
        "first default circuit, SmolLM2-135M",
        "circuit, SmolLM2-135M",
        "no circuit, SmolLM2-135M",
        "circuit, Qwen2.5-Coder-0.5B",
        "prompted, Qwen2.5-Coder-0.5B",
    }
    # Replies to one scenario are no independent evidence.
    assert all(row.group for row in rows)
