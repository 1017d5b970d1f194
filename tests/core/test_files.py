"""Files: whole or not at all, bounded, and read whatever editor saved them."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from pydantic import BaseModel

from emovllm.errors import DataError
from emovllm.files import decode, read_bytes, read_json, read_text, write_atomically, write_json


class Pair(BaseModel):
    name: str
    count: int


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("data", [b"one\ntwo\n", b"one\r\ntwo\r\n", MARK + b"one\r\ntwo\r\n", b"one\rtwo\r"])
def test_text_is_the_same_with_any_mark_and_any_end_of_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "text"
    path.write_bytes(data)
    assert read_text(path, DataError) == "one\ntwo\n"


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_text_of_another_encoding_is_refused_with_what_to_do(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "text"
    path.write_bytes("Verspätung".encode(encoding))
    with pytest.raises(DataError, match="text: not UTF-8 text; save it as UTF-8"):
        read_text(path, DataError)


def test_text_is_read_from_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"from a pipe\r\n",))
    writer.start()
    assert read_text(pipe, DataError) == "from a pipe\n"
    writer.join()


def test_no_more_is_read_than_fits(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"12345")
    assert read_bytes(path, DataError, 5) == b"12345"
    assert read_text(path, DataError, 5) == "12345"
    for read in (read_bytes, read_text):
        with pytest.raises(DataError, match="data: larger than 4 bytes"):
            read(path, DataError, 4)
    with pytest.raises(DataError, match="zero: larger than 4 bytes"):
        read_text(Path("/dev/zero"), DataError, 4)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing: No such file"):
        read_text(tmp_path / "missing", DataError)
    with pytest.raises(DataError, match=f"{tmp_path}: Is a directory"):
        read_text(tmp_path, DataError)
    with pytest.raises(DataError, match=f"{tmp_path}: not a file"):
        read_bytes(tmp_path, DataError, 1)


@pytest.mark.parametrize("mark", [b"", MARK])
def test_json_is_read_with_or_without_a_mark(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "pair.json"
    path.write_bytes(mark + b'{"name": "a",\r\n "count": 2}\r\n')
    assert read_json(path, Pair, DataError) == Pair(name="a", count=2)


def test_the_field_at_fault_is_named_and_what_it_holds_is_not(tmp_path: Path) -> None:
    path = tmp_path / "pair.json"
    path.write_text('{"name": "a", "count": "secret"}')
    with pytest.raises(DataError, match=r"pair\.json: count: Input should be a valid integer") as caught:
        read_json(path, Pair, DataError)
    assert "secret" not in str(caught.value)


def test_a_failed_write_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.json"
    write_json(path, {"a": [1]})
    assert json.loads(path.read_text()) == {"a": [1]}

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"half")
    assert [file.name for file in tmp_path.iterdir()] == ["data.json"]
    assert json.loads(path.read_text()) == {"a": [1]}


def test_bytes_that_are_no_text_name_their_file() -> None:
    assert decode(Path("f"), MARK + b"x", DataError) == "x"
    with pytest.raises(DataError, match="f: not UTF-8"):
        decode(Path("f"), b"\xff", DataError)
