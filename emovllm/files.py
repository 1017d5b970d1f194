"""Files read and written: never half of one, no more than fits, with or without a byte order mark and CRLF."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from emovllm.errors import EmovllmError

# Of a file that a user writes: the largest data set that is packaged is a hundredth of it.
MAX_TEXT_BYTES = 2**28

Content = TypeVar("Content", bound=BaseModel)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes through a temporary name: readers see the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that a person can read, atomically."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def read_bytes(path: Path, error: type[EmovllmError], limit: int) -> bytes:
    """The bytes of a regular file, of which there may be no more than `limit`. Raises: `error`, naming the file."""
    try:
        # Not to wait for a pipe to be written, nor to read a device without end.
        if not path.is_file():
            raise error(f"{path}: {'not a file' if path.exists() else 'No such file or directory'}")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise error(f"{path}: larger than {limit} bytes")
            data = file.read(size + 1)
    except OSError as cause:
        raise error(f"{path}: {cause.strerror}") from None
    if len(data) != size:
        raise error(f"{path}: changed while it was read")
    return data


def read_text(path: Path, error: type[EmovllmError], limit: int = MAX_TEXT_BYTES) -> str:
    """The text of a file that a user writes, or of a pipe, with newlines alone.

    Raises: `error`, naming the file and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as cause:
        raise error(f"{path}: {cause.strerror}") from None
    if len(data) > limit:
        raise error(f"{path}: larger than {limit} bytes")
    return decode(path, data, error)


def decode(path: Path | str, data: bytes, error: type[EmovllmError]) -> str:
    """A file's text without its byte order mark, with newlines alone. Raises: `error`."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise error(f"{path}: not UTF-8 text; save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, kind: type[Content], error: type[EmovllmError]) -> Content:
    """A file of JSON as `kind`. Raises: `error`, naming the file, the field and what is wrong with it."""
    return parse_json(str(path), read_text(path, error), kind, error)


def parse_json(place: str, text: str, kind: type[Content], error: type[EmovllmError]) -> Content:
    """JSON as `kind`; `place` names it. Raises: `error`."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as cause:
        raise error(f"{place}: {first_fault(cause)}") from None


def first_fault(error: ValidationError) -> str:
    """The first field that is not as it should be, and why, without what it holds."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if field else str(first["msg"])
