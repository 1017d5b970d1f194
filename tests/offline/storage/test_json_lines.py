"""Files of JSON lines: read whatever editor saved them; what is wrong is told with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from emovllm.errors import DataError
from emovllm_offline.storage.json_lines import Id, read_json_lines


class Pair(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: Id
    text: str = ""


def read(path: Path) -> list[tuple[int, Pair]]:
    return list(read_json_lines(path, Pair, DataError))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"\n", b"\r\n\r\n"])
def test_lines_are_the_same_with_any_mark_and_any_end_of_line(
    tmp_path: Path, mark: bytes, end: bytes, last: bytes
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(mark + end.join([b'{"id": "a", "text": "one\xe2\x80\xa8two"}', b"  ", b'{"id": "b"}']) + last)
    assert read(path) == [(1, Pair(id="a", text="one\u2028two")), (3, Pair(id="b"))]


def test_a_name_may_be_a_whole_number_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"id": 7}\n{"id": 0}\n')
    assert [pair.id for _, pair in read(path)] == ["7", "0"]
    for value in ("1.5", "true", "null", "[1]"):
        path.write_text(f'{{"id": {value}}}\n')
        with pytest.raises(DataError, match="line 1: id: Input should be a valid string"):
            read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"}', "line 2: id: missing; the fields that are there: text"),
        ("{}", "line 2: id: missing; the fields that are there: none"),
        ('{"id": "a", "txt": ""}', "line 2: txt: Extra inputs"),
        ("{", "line 2: Invalid JSON: .*; each line holds one JSON object"),
        ('[{"id": "a"}]', "line 2: Input should be an object; each line holds one JSON object"),
    ],
)
def test_a_fault_is_told_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"id": "a"}}\n{line}\n')
    with pytest.raises(DataError, match=f"pairs.jsonl, {message}"):
        read(path)


def test_text_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes('{"id": "a"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match="not UTF-8 text; save it as UTF-8"):
        read(path)
