"""Files of JSON lines that users write: what is wrong with one is told with its line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from emovllm.errors import EmovllmError
from emovllm.files import first_fault, read_text

Line = TypeVar("Line", bound=BaseModel)


def _as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


# A name, which may be written as a whole number.
Id = Annotated[str, BeforeValidator(_as_text)]


def read_json_lines(path: Path, kind: type[Line], error: type[EmovllmError]) -> Iterator[tuple[int, Line]]:
    """Each line with its number, from 1; blank lines are skipped. Raises: `error`, naming the file and the line."""
    return parse_json_lines(path, read_text(path, error), kind, error)


def parse_json_lines(path: Path, text: str, kind: type[Line], error: type[EmovllmError]) -> Iterator[tuple[int, Line]]:
    """As `read_json_lines`, of a text that was read from `path`."""
    # Not splitlines(): JSON may hold separators, such as U+2028, at which that would split.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, kind.model_validate_json(line)
        except ValidationError as cause:
            raise error(f"{path}, line {number}: {_fault(cause)}") from None


def _fault(cause: ValidationError) -> str:
    first = cause.errors(include_url=False)[0]
    if first["type"] == "missing":
        there = ", ".join(first["input"]) or "none"
        return f"{'.'.join(map(str, first['loc']))}: missing; the fields that are there: {there}"
    if first["type"] in ("json_invalid", "model_type") and not first["loc"]:
        return f"{first['msg']}; each line holds one JSON object"
    return first_fault(cause)
