"""OpenAI Batch files: what is refused before an engine starts, and what an interrupted batch finds again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emovllm.errors import BatchFileError
from emovllm_server.batch.files import Line, Replies, parse_lines

ENGINE = "a model with a circuit"


def row(custom_id: str, **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})


def answered(text: str = "hello") -> dict[str, Any]:
    return {"status_code": 200, "request_id": "r", "body": {"text": text}}


@pytest.fixture
def lines() -> list[Line]:
    return parse_lines("\n".join(row(f"line {number}", number=number) for number in range(4)), "in.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "in.jsonl: has no requests"),
        ("\n \n", "in.jsonl: has no requests"),
        (row("a") + "\n{", "in.jsonl: line 2: "),
        ("\n[]", "in.jsonl: line 2: not a JSON object"),
        ("[" * 100_000, "in.jsonl: line 1: "),
        ('{"custom_id": 3}', "in.jsonl: line 1: custom_id must be a string"),
        (row("a") + "\n\n" + row("a"), "in.jsonl: line 3: custom_id 'a' is taken by a line before"),
    ],
)
def test_an_input_that_cannot_be_matched_with_replies_is_refused(text: str, message: str) -> None:
    with pytest.raises(BatchFileError) as caught:
        parse_lines(text, "in.jsonl")
    assert str(caught.value).startswith(message)


def test_windows_line_ends_and_separators_within_strings_are_no_lines() -> None:
    found = parse_lines(row("a", text="x\u2028y\x85z") + "\r\n" + row("b") + "\r\n", "in.jsonl")
    assert [line.custom_id for line in found] == ["a", "b"]


def test_refusals_are_counted_by_reason_also_when_a_batch_goes_on(tmp_path: Path, lines: list[Line]) -> None:
    path = tmp_path / "out.jsonl"
    replies = Replies(path, lines)
    for line, body in zip(
        lines, ({"error": {"message": "no"}}, {"error": {"message": "no"}}, {"detail": 1}), strict=False
    ):
        replies.add(line, ENGINE, {"status_code": 400, "request_id": "r", "body": body})
    replies.add(lines[3], ENGINE, answered())
    expected = {(400, "no"): 2, (400, "HTTP 400"): 1}
    assert replies.refusals == expected
    replies.close()
    again = Replies(path, lines)
    assert again.refusals == expected
    again.close()


def test_a_batch_goes_on_where_it_was(tmp_path: Path, lines: list[Line]) -> None:
    path = tmp_path / "out.jsonl"
    replies = Replies(path, lines)
    assert replies.left == lines
    replies.add(lines[2], ENGINE, answered("\ud83d broken, and \u2028 not"))
    replies.add(lines[0], ENGINE, answered())
    # The file is whole before it is closed, as a killed process would leave it.
    written = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    assert [reply["custom_id"] for reply in written] == ["line 2", "line 0"]
    assert written[0]["response"]["body"]["text"].endswith("broken, and \u2028 not")
    assert written[1]["error"] is None
    replies.close()
    again = Replies(path, lines)
    again.check_engine(ENGINE)
    assert [line.custom_id for line in again.left] == ["line 1", "line 3"]
    assert len(again) == 4
    again.close()


def test_a_torn_last_line_is_asked_again(tmp_path: Path, lines: list[Line]) -> None:
    path = tmp_path / "out.jsonl"
    replies = Replies(path, lines)
    replies.add(lines[0], ENGINE, answered())
    whole = path.read_bytes()
    replies.add(lines[1], ENGINE, answered())
    replies.close()
    torn = path.read_bytes()
    for length in (len(whole), len(whole) + 1, len(torn) - 1):
        path.write_bytes(torn[:length])
        again = Replies(path, lines)
        assert again.left == lines[1:]
        again.close()
        assert path.read_bytes() == whole


def test_another_engine_or_another_input_is_refused_and_the_file_kept(tmp_path: Path, lines: list[Line]) -> None:
    path = tmp_path / "out.jsonl"
    replies = Replies(path, lines)
    replies.add(lines[0], ENGINE, answered())
    replies.close()
    kept = path.read_bytes()
    again = Replies(path, lines)
    with pytest.raises(BatchFileError, match="'line 0' is of another model, circuit or version"):
        again.check_engine("another circuit")
    again.close()
    changed = parse_lines(row("line 0", number=99), "in.jsonl")
    with pytest.raises(BatchFileError, match="line 1 is no reply to a line of this input"):
        Replies(path, changed)
    for foreign in (b'{"prompt": "mine"}\n', b"a diary\nof two lines\n", kept + kept, b"\xff\xfe\n", b"[1]\n"):
        path.write_bytes(foreign)
        with pytest.raises(BatchFileError, match="give another output file"):
            Replies(path, lines)
        assert path.read_bytes() == foreign


def test_two_runs_do_not_write_one_file(tmp_path: Path, lines: list[Line]) -> None:
    first = Replies(tmp_path / "out.jsonl", lines)
    with pytest.raises(BatchFileError, match="another run is writing it"):
        Replies(tmp_path / "out.jsonl", lines)
    first.close()
    Replies(tmp_path / "out.jsonl", lines).close()


def test_an_output_that_cannot_be_made_is_named(tmp_path: Path, lines: list[Line]) -> None:
    with pytest.raises(BatchFileError, match=r"no/out\.jsonl: No such file"):
        Replies(tmp_path / "no" / "out.jsonl", lines)
