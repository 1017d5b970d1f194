"""The items of the side effects: what is packaged, and what a file of one's own may hold."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from emovllm.errors import DataError
from emovllm_offline.data.examples import load_examples
from emovllm_offline.data.messages import CLOSED, load_messages
from emovllm_offline.data.side_effects import items_digest, load_items

KINDS = ["arithmetic", "facts", "format", "harmful", "harmless", "false claims", "true claims"]
LINE = {"id": 1, "kind": "facts", "user": "What is the capital of Japan?", "check": {"says": ["Tokyo"]}}


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_each_kind_has_as_many_items_and_none_comes_twice_or_was_learnt_from() -> None:
    items = load_items()
    assert Counter(item.kind for item in items) == dict.fromkeys(KINDS, 20)
    asked = {item.user for item in items}
    assert len(asked) == len(items)
    assert not asked & {example.user for example in load_examples()}
    assert not asked & {message.user for name in ("sev", CLOSED) for message in load_messages(name)}
    assert all(item.user.isascii() for item in items)


def test_the_first_items_of_each_kind_are_taken() -> None:
    few = load_items(limit=2)
    assert [item.kind for item in few] == [kind for kind in KINDS for _ in range(2)]
    assert few[0] == load_items()[0]
    assert items_digest(few) != items_digest(load_items())


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (item,) = load_items(written(tmp_path / "mine.jsonl", LINE))
    assert (item.id, item.check.kind, item.check.says) == ("1", "says", ("Tokyo",))
    # What is right is part of it, also where the question is the same.
    other = {**LINE, "check": {"says": ["Osaka"]}}
    assert items_digest([item]) != items_digest(load_items(written(tmp_path / "other.jsonl", other)))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({**LINE, "check": {}}, "line 1: check: Value error, name exactly one of says, number, answer"),
        ({**LINE, "check": {"says": ["a"], "number": 1}}, "name exactly one of says, number"),
        ({**LINE, "check": {"number": None}}, "name exactly one of says, number"),
        ({**LINE, "check": {"sais": ["a"]}}, "line 1: check.sais"),
        ({**LINE, "check": {"words": 0}}, "line 1: check.words"),
        ({**LINE, "kind": " "}, "line 1: kind"),
        ({"id": "1"}, "kind: missing"),
    ],
)
def test_what_is_wrong_with_an_item_is_told_with_its_line(tmp_path: Path, line: object, told: str) -> None:
    with pytest.raises(DataError, match=told.replace(".", r"\.")):
        load_items(written(tmp_path / "mine.jsonl", line))


def test_a_file_without_items_or_with_one_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no items in it"):
        load_items(written(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="two items have the same id"):
        load_items(written(tmp_path / "twice.jsonl", LINE, {**LINE, "user": "Where?"}))
