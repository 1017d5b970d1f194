"""Files of JSON lines that users write: what is wrong with one is told with its line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from emovllm.errors import EmovllmError

Line = TypeVar("Line", bound=BaseModel)


def read_json_lines(path: Path, kind: type[Line], error: type[EmovllmError]) -> Iterator[tuple[int, Line]]:
    """Each line with its number, from 1; blank lines are skipped. Raises: `error`, naming the file and the line."""
    try:
        # Not splitlines(): JSON may hold separators, such as U+2028, at which that would split.
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as cause:
        raise error(f"{path}: {cause.strerror}") from None
    except UnicodeDecodeError:
        raise error(f"{path}: not UTF-8 text") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, kind.model_validate_json(line)
        except ValidationError as cause:
            first = cause.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise error(f"{path}, line {number}: {where + ': ' if where else ''}{first['msg']}") from None
