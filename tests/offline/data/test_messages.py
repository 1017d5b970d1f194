"""Messages of an evaluation: SEV, or any lines with a `user`, as people save them."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from emovllm.errors import DataError
from emovllm_offline.data.messages import Message, load_messages
from emovllm_offline.data.sev import load_sev

MARK = b"\xef\xbb\xbf"


def test_a_byte_order_mark_and_crlf_are_read(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_bytes(MARK + '{"id": "1", "user": "Zwei Stunden Verspätung."}\r\n{"user": "Hi"}\r\n'.encode())
    assert load_messages(path) == [
        Message("1", "untold", "Zwei Stunden Verspätung."),
        Message("line-2", "untold", "Hi"),
    ]


def test_sev_with_a_byte_order_mark_is_sev(tmp_path: Path) -> None:
    records = load_sev()[:2]
    path = tmp_path / "sev.jsonl"
    path.write_bytes(MARK + "".join(record.model_dump_json() + "\r\n" for record in records).encode())
    assert load_sev(path) == records
    assert load_messages(path) == load_messages("sev-small", 2)


def test_whole_numbers_are_names(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text('{"id": 1, "user": "Hello"}\n{"id": 0, "user": "Bye", "valence": 3}\n')
    assert load_messages(path) == [Message("1", "untold", "Hello"), Message("0", "3", "Bye")]
    path.write_text('{"id": 1, "user": "Hello"}\n{"id": "1", "user": "Bye"}\n')
    with pytest.raises(DataError, match="two lines have the same id"):
        load_messages(path)
    path.write_text('{"user": "Hello", "group": 5}\n')
    assert load_messages(path) == [Message("line-1", "untold", "Hello", "5")]
    record = json.loads(load_sev()[0].model_dump_json()) | {"skeleton_id": 12}
    path.write_text(json.dumps(record) + "\n")
    assert [(message.id, message.group) for message in load_messages(path)[:2]] == [
        ("12.positive", "12"),
        ("12.neutral", "12"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1, "prompt": "Late again."}', "line 1: user: missing; the fields that are there: id, prompt"),
        ('{"scenario": "A bus is late."}', "line 1: skeleton_id: missing; the fields that are there: scenario"),
        ('{"user": ""}', "line 1: user: String should have at least 1 character"),
        ('[{"user": "Hi"}]', "line 1: Input should be an object; each line holds one JSON object"),
        ("user,id", "line 1: Invalid JSON: .*; each line holds one JSON object"),
        ("", "has no messages"),
    ],
)
def test_what_is_missing_is_told(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"\n{line}".lstrip("\n") + "\n")
    with pytest.raises(DataError, match=rf"prompts\.jsonl[:,] {message}"):
        load_messages(path)


def test_messages_are_read_from_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=('{"user": "Hi"}\n',))
    writer.start()
    assert load_messages(pipe) == [Message("line-1", "untold", "Hi")]
    writer.join()
