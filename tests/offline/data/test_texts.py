"""Texts for probes: JSON lines, GoEmotions' table, and what `elicit` wrote."""

from __future__ import annotations

import json

import pytest

from emovllm.errors import DataError
from emovllm_offline.data.texts import Text, label_names, load_texts

ELICITED = '{"item": "a.neutral", "emotion": "fear", "reply": "%s", "match": %d}'


def test_json_lines_have_one_or_several_labels_and_a_group_or_none(tmp_path):
    file = tmp_path / "texts.jsonl"
    rows = [
        {"text": "Hooray!", "label": "Joy", "register": "letters"},
        {"text": "Oh no.", "labels": ["fear", "Sadness", "fear"], "group": 7},
        {"text": "Hooray!", "label": ["surprise", "anger"]},
    ]
    file.write_text("\n\n".join(map(json.dumps, rows)))
    texts = load_texts(file)
    assert texts == [
        Text("Hooray!", ("happiness",), texts[2].group),
        Text("Oh no.", ("fear", "sadness"), "7"),
        Text("Hooray!", ("surprise", "anger"), texts[0].group),
    ]
    assert label_names(texts) == ("anger", "fear", "happiness", "sadness", "surprise")


@pytest.mark.parametrize("last", ["", "\tabc"])
@pytest.mark.parametrize("labels", ["1,2", "joy,neutral"])
def test_the_table_of_goemotions_is_read_with_numbers_or_names_and_with_or_without_ids(tmp_path, labels, last):
    (tmp_path / "labels.txt").write_text("anger\njoy\nneutral\n")
    file = tmp_path / "dev.tsv"
    file.write_text(f'He said "go\u2028away\t{labels}{last}\nFine.\tanger{last}\n')
    one, other = load_texts(file)
    assert (one.text, one.labels) == ('He said "go\u2028away', ("happiness", "neutral"))
    assert (other.text, other.labels) == ("Fine.", ("anger",))
    assert one.group != other.group


def test_of_elicited_replies_the_accepted_ones_are_texts_in_the_groups_of_their_scenarios(tmp_path):
    def line(item: str, emotion: str, match: int | None) -> str:
        usual = {"style": "paper", "frame": 0, "prompt": "0", "finish_reason": "stop", "judge": "lexicon"}
        reply = {"item": item, "emotion": emotion, "reply": f"{item} {emotion}", "match": match}
        return json.dumps(usual | reply | {"label": emotion, "reason": ""})

    file = tmp_path / "replies.jsonl"
    rows = [line("a.positive", "anger", 1), line("a.negative", "fear", 1), line("b.neutral", "fear", 0)]
    file.write_text("\n".join([*rows, line("b.positive", "fear", None)]))
    assert load_texts(file) == [
        Text("a.positive anger", ("anger",), "a"),
        Text("a.negative fear", ("fear",), "a"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.jsonl", '{"text": "Hm."}', "line 1: .*expected `label`, or `labels`"),
        ("a.jsonl", '{"text": "Hm.", "label": "fear", "labels": ["fear"]}', "line 1: .*not both"),
        ("a.jsonl", '{"label": "fear"}', "line 1: text: missing"),
        ("a.jsonl", '\n{"text": " ", "label": "fear"}', "line 2: text"),
        ("a.jsonl", '{"text": "Hm.", "label": "very cross"}', "line 1: label"),
        ("a.jsonl", '{"text": "Hm.", "labels": []}', "line 1: labels"),
        ("a.jsonl", '{"text": "Hm.", "label": null}', "line 1: .*expected `label`"),
        ("a.jsonl", "text,label", "line 1: .*each line holds one JSON object"),
        ("a.jsonl", "", "no texts in it$"),
        ("a.jsonl", ELICITED % ("Hm.", 0), "no texts in it that their judge"),
        ("a.jsonl", ELICITED % ("", 1), "line 1: .*an accepted reply is empty"),
        ("a.tsv", "Hm.\t9\tabc\n", r"line 1: label 9 is not in labels\.txt, which has 1"),
        ("b/a.tsv", "Hm.\t0\n", r"line 1: label 0 is a number, and no labels\.txt"),
        ("a.tsv", "Hm.\t0\n \t0\n", "line 2: the text is empty"),
        ("a.tsv", "Hm.\n", "line 1: has 1 columns"),
        ("a.tsv", "Hm.\t0\tabc\t5\n", "line 1: has 4 columns"),
        ("a.tsv", "Hm.\tvery cross\n", "line 1: label 'very cross'"),
        ("a.tsv", "Hm.\t\n", "line 1: label ''"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, name, text, why):
    (tmp_path / "b").mkdir()
    (tmp_path / "labels.txt").write_text("anger\n")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}[,:] ?{why}"):
        load_texts(tmp_path / name)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl"):
        load_texts(tmp_path / "none.jsonl")
