"""Emotional replies to learn from, as people save them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emovllm.errors import ExamplesError
from emovllm_offline.data.examples import Example, digest, load_examples
from emovllm_offline.data.sev import words
from emovllm_offline.judges.text import opening, openings
from support.circuits import SIX

LINE = {"id": "1", "user": "I moved.", "replies": {"anger": "Ugh!", "fear": "Oh no."}}


def test_a_byte_order_mark_crlf_and_whole_numbers_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text(json.dumps(LINE) + "\n")
    plain = load_examples(path)
    assert plain == [Example(**LINE)]
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({**LINE, "id": 1}).encode() + b"\r\n\r\n")
    assert load_examples(path) == plain
    assert digest(load_examples(path)) == digest(plain)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": 1, "replies": {"anger": "Ugh!"}}, "line 2: user: missing; the fields that are there: id, replies"),
        ({**LINE, "id": " "}, "line 2: id: String should match"),
        ({**LINE, "id": 1}, "line 2: 1 is there twice"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, line: dict[str, object], message: str) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(ExamplesError, match=rf"replies\.jsonl, {message}"):
        load_examples(path)


def test_the_packaged_replies_begin_with_something_of_their_message_and_seldom_alike() -> None:
    found = load_examples()
    assert {tuple(example.replies) for example in found} == {SIX}
    pairs = [(example, name, reply) for example in found for name, reply in example.replies.items()]
    stems = {example.id: {word[:5] for word in words(example.user) if len(word) > 3} for example in found}
    named = [any(word[:5] in stems[example.id] for word in opening(reply, 4)) for example, _, reply in pairs]
    assert sum(named) > 0.9 * len(pairs)
    assert openings([(name, reply) for _, name, reply in pairs]) > 0.95
