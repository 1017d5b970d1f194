"""A journal: lines as they come, a torn last one cut, other settings refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from emovllm.errors import StoredError
from emovllm_offline.storage.journal import Journal, Lines


class Answer(BaseModel):
    number: int
    text: str


SETTINGS = {"max_tokens": 60, "judge": {"name": "lexicon"}, "strengths": (0.5, 1.0)}


def journal(folder: Path, settings: dict[str, Any] = SETTINGS, fresh: bool = False) -> Journal:
    remedy = "give --fresh, or another --out"
    return Journal(folder, settings, name="run.json", files=("answers.jsonl",), remedy=remedy, fresh=fresh)


def answers(folder: Path, settings: dict[str, Any] = SETTINGS, fresh: bool = False) -> Lines[Answer]:
    return journal(folder, settings, fresh).lines("answers.jsonl", Answer)


def row(number: int) -> Answer:
    return Answer(number=number, text=f"answer \u2028 {number}")


def test_an_interrupted_run_goes_on_and_leaves_the_same_bytes(tmp_path: Path) -> None:
    answers(tmp_path / "whole").append(*map(row, range(5)))
    whole = (tmp_path / "whole" / "answers.jsonl").read_bytes()

    def work(folder: Path, until: int) -> int:
        lines = answers(folder)
        begun_at = len(lines.rows)
        for number in range(begun_at, until):
            lines.append(row(number))
        return begun_at

    assert work(tmp_path / "parts", 2) == 0
    assert work(tmp_path / "parts", 5) == 2
    assert answers(tmp_path / "parts").rows == [row(number) for number in range(5)]
    assert (tmp_path / "parts" / "answers.jsonl").read_bytes() == whole


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_cut_and_written_again(tmp_path: Path, cut: int) -> None:
    answers(tmp_path).append(row(0), row(1))
    path = tmp_path / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    lines = answers(tmp_path)
    assert lines.rows == [row(0)]
    assert path.read_bytes() == whole[: whole.index(b"\n") + 1]
    lines.append(row(1))
    assert path.read_bytes() == whole


def test_a_character_torn_in_two_is_cut(tmp_path: Path) -> None:
    answers(tmp_path).append(row(0))
    with (tmp_path / "answers.jsonl").open("ab") as file:
        file.write('{"number": 1, "text": "ü'.encode()[:-1])
    assert answers(tmp_path).rows == [row(0)]


def test_other_settings_are_refused_by_name_and_nothing_is_touched(tmp_path: Path) -> None:
    answers(tmp_path).append(row(0))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = {**SETTINGS, "max_tokens": 30, "judge": {"name": "local"}}
    with pytest.raises(StoredError, match=r"other settings: max_tokens, judge; .* give --fresh, or another --out"):
        journal(tmp_path, other)
    # A setting that is new, and one that is gone.
    with pytest.raises(StoredError, match="other settings: seed, strengths;"):
        journal(tmp_path, {"max_tokens": 60, "judge": {"name": "lexicon"}, "seed": 1})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_fresh_forgets_what_was_there(tmp_path: Path) -> None:
    answers(tmp_path).append(row(0))
    other = {**SETTINGS, "max_tokens": 30}
    assert answers(tmp_path, other, fresh=True).rows == []
    assert json.loads((tmp_path / "run.json").read_text())["max_tokens"] == 30
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_damaged_line_is_named_with_what_to_do(tmp_path: Path) -> None:
    answers(tmp_path).append(row(0), row(1))
    path = tmp_path / "answers.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"number":1', b'"number":"x"'))
    with pytest.raises(StoredError, match=r"answers\.jsonl, line 2: damaged \(number: .*\); give --fresh"):
        answers(tmp_path)


def test_damaged_or_lost_settings_are_told_with_what_to_do(tmp_path: Path) -> None:
    answers(tmp_path).append(row(0))
    (tmp_path / "run.json").write_text("[")
    with pytest.raises(StoredError, match=r"run\.json: damaged; give --fresh"):
        journal(tmp_path)
    (tmp_path / "run.json").unlink()
    for _ in range(2):  # refusing must not make the settings
        with pytest.raises(StoredError, match=r"has answers\.jsonl but no run\.json: .* give --fresh"):
            journal(tmp_path)


def test_lines_are_kept_up_to_a_count(tmp_path: Path) -> None:
    lines = answers(tmp_path)
    lines.append(*map(row, range(4)))
    lines.keep(7)
    assert len(lines.rows) == 4
    lines.keep(2)
    assert lines.rows == answers(tmp_path).rows == [row(0), row(1)]
    lines.append(row(2))
    assert answers(tmp_path).rows == [row(0), row(1), row(2)]


def test_a_line_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    answers(tmp_path).append(*map(row, range(4)))
    before = (tmp_path / "answers.jsonl").read_bytes().split(b"\n")
    lines = answers(tmp_path)
    lines.replace({})
    assert (tmp_path / "answers.jsonl").read_bytes().split(b"\n") == before
    lines.replace({2: row(9)})
    lines.append(row(4))
    assert [answer.number for answer in lines.rows] == [0, 1, 9, 3, 4]
    assert answers(tmp_path).rows == lines.rows
    after = (tmp_path / "answers.jsonl").read_bytes().split(b"\n")
    assert [one == other for one, other in zip(before[:4], after, strict=False)] == [True, True, False, True]


def test_lines_need_no_journal_and_make_their_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    lines = Lines(path, Answer)
    assert lines.rows == []
    assert not path.exists()
    lines.append(row(0))
    assert Lines(path, Answer).rows == [row(0)]
