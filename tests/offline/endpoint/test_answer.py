"""What is read out of a model's answer."""

from __future__ import annotations

from typing import Any

import pytest

from emovllm_offline.endpoint.answer import json_objects


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ('{"a": 1}', [{"a": 1}]),
        ('```json\n{"a": {"b": 2}}\n```', [{"a": {"b": 2}}]),
        ('{not json} {"a": 1} {"a": 2}', [{"a": 1}, {"a": 2}]),
        ("[1]", []),
        ("{", []),
        ("", []),
    ],
)
def test_json_objects_are_found_among_words(text: str, objects: list[dict[str, Any]]) -> None:
    assert json_objects(text) == objects
