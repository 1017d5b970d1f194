"""Files that hold all that a command found."""

from __future__ import annotations

from pathlib import Path

import pytest

from emovllm.errors import ResultsError
from emovllm_offline.storage.results_file import ResultsFile


class Counted(ResultsFile):
    FILE = "counted.json"

    words: dict[str, int]


def test_what_is_saved_is_loaded_again_and_holds_the_fields_alone(tmp_path: Path) -> None:
    found = Counted(words={"a": 2})
    found.save(tmp_path)
    assert (tmp_path / "counted.json").read_bytes() == b'{\n "words": {\n  "a": 2\n }\n}\n'
    assert Counted.load(tmp_path) == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "counted.json: No such file"),
        ("{", "counted.json: Invalid JSON"),
        ('{"words": {"a": "b"}}', "counted.json: words.a: "),
        ('{"words": {}, "FILE": "counted.json"}', "counted.json: FILE: Extra inputs"),
    ],
)
def test_what_is_no_such_file_is_refused_by_its_name(tmp_path: Path, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / "counted.json").write_text(text)
    with pytest.raises(ResultsError, match=told):
        Counted.load(tmp_path)
