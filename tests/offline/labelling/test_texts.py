"""What is labelled, in which order, and what is left of it."""

from __future__ import annotations

import json

import pytest

from emovllm.errors import DataError, StoredError
from emovllm_offline.data.labelled import load_labelled
from emovllm_offline.labelling.texts import Labelling, compare, read_texts

TEXTS = {f"text {number}": "letters" for number in range(12)}
LABELS = ("joy", "fear")


def label_all(labelling: Labelling, choose=lambda text: "fear") -> list[str]:
    order = []
    while (text := labelling.next()) is not None:
        order.append(text)
        labelling.say(text, choose(text))
    return order


def test_texts_and_replies_are_read_once_each(tmp_path):
    lines = [{"text": "One."}, {"reply": "Two.", "emotion": "fear"}, {"text": "One."}, {"text": " "}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "b.jsonl").write_text('{"text": "Two."}\n{"text": "Three."}\n')
    assert read_texts([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]) == {"One.": "a", "Two.": "a", "Three.": "b"}


@pytest.mark.parametrize(("line", "why"), [('{"words": "x"}', "neither text nor reply"), ('{"text": ""}', "no text")])
def test_a_file_without_texts_is_refused(tmp_path, line, why):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError, match=why):
        read_texts([tmp_path / "a.jsonl"])


def test_the_order_tells_nothing_and_is_another_with_another_seed(tmp_path):
    orders = [label_all(Labelling(TEXTS, LABELS, tmp_path / f"{seed}", seed=seed)) for seed in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(TEXTS)
    assert len({tuple(TEXTS), *map(tuple, orders)}) == 3
    again = Labelling(dict(reversed(TEXTS.items())), LABELS, tmp_path / "again")
    assert label_all(again) == orders[0]


def test_a_pass_goes_on_where_it_was_ended(tmp_path):
    first = Labelling(TEXTS, LABELS, tmp_path / "out.jsonl", limit=5)
    whole = label_all(Labelling(TEXTS, LABELS, tmp_path / "whole.jsonl", limit=5))
    for _ in range(2):
        first.say(first.next(), "joy")
    again = Labelling(TEXTS, LABELS, tmp_path / "out.jsonl", limit=5)
    assert (again.done, again.total) == (2, 5)
    assert label_all(again) == whole[2:]
    rows = load_labelled(tmp_path / "out.jsonl")
    assert [row.text for row in rows] == whole
    assert [row.label for row in rows] == [("happiness",)] * 2 + [("fear",)] * 3
    assert {row.register_ for row in rows} == {"letters"}


def test_labels_are_taken_back_one_by_one(tmp_path):
    labelling = Labelling(TEXTS, LABELS, tmp_path / "out.jsonl")
    labelling.undo()
    first = labelling.next()
    labelling.say(first, "joy")
    second = labelling.next()
    labelling.say(second, "joy")
    labelling.undo()
    assert labelling.next() == second
    labelling.undo()
    assert (labelling.next(), labelling.done) == (first, 0)
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_what_cannot_be_said_is_refused(tmp_path):
    labelling = Labelling(TEXTS, LABELS, tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="no label 'rage'"):
        labelling.say(labelling.next(), "rage")
    with pytest.raises(DataError, match="the page is an old one"):
        labelling.say("text of another page", "joy")
    labelling.say(labelling.next(), "joy")
    with pytest.raises(DataError, match="not to choose from: joy"):
        Labelling(TEXTS, ("fear",), tmp_path / "out.jsonl")
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(StoredError, match="line 1"):
        Labelling(TEXTS, LABELS, tmp_path / "other.jsonl")


def test_two_passes_are_compared_on_what_both_have(tmp_path):
    label_all(Labelling(TEXTS, LABELS, tmp_path / "one.jsonl"), lambda text: "joy" if text < "text 5" else "fear")
    label_all(Labelling(TEXTS, LABELS, tmp_path / "two.jsonl", limit=8, seed=3))
    agreement = compare(tmp_path / "one.jsonl", tmp_path / "two.jsonl")
    assert agreement.texts == 8
    assert 0 < agreement.equal < 1
    assert agreement.kappa == 0
    (tmp_path / "three.jsonl").write_text('{"text": "Other.", "label": "joy"}\n')
    with pytest.raises(DataError, match="no text in common"):
        compare(tmp_path / "one.jsonl", tmp_path / "three.jsonl")
