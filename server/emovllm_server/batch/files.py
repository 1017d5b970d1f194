"""OpenAI Batch files: lines of requests, and the file of replies that grows beside them.

A reply's `id` names the request and the engine that it is of, so that an interrupted batch goes on without a file
beside its output, and never with another model's or circuit's replies in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emovllm.errors import BatchFileError

# Of a refusal's message, in characters, as it is counted and told.
_MAX_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Line:
    """One request, as its line gives it; what is asked for is checked when it is asked."""

    custom_id: str
    request: dict[str, Any]
    digest: str  # of the line's text

    @classmethod
    def parse(cls, text: str) -> Line:
        """Raises: ValueError."""
        try:
            request = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(request, dict):
            raise ValueError("not a JSON object")
        custom_id = request.get("custom_id")
        if not isinstance(custom_id, str):
            raise ValueError("custom_id must be a string")
        return cls(custom_id, request, _digest(text))


def parse_lines(text: str, name: str) -> list[Line]:
    """The requests of a batch file called `name`; empty lines count as none. Raises: BatchFileError."""
    lines: dict[str, Line] = {}
    for number, row in enumerate(text.split("\n"), 1):
        if not row.strip():
            continue
        try:
            line = Line.parse(row.strip())
        except ValueError as error:
            raise BatchFileError(f"{name}: line {number}: {error}") from None
        if line.custom_id in lines:
            raise BatchFileError(f"{name}: line {number}: custom_id {line.custom_id!r} is taken by a line before")
        lines[line.custom_id] = line
    if not lines:
        raise BatchFileError(f"{name}: has no requests")
    return list(lines.values())


class Replies:
    """The output file: a whole line for each request that was answered, in the order of the answers.

    Each line is written by one call, so that the file is valid whenever it is looked at; what a crash of the machine
    tore is cut off when the batch goes on.
    """

    def __init__(self, path: Path, lines: Sequence[Line]) -> None:
        """Opens the file, or makes it. Raises: BatchFileError."""
        self.path = path
        # Of the replies that are there: by HTTP status and message, how many lines were refused.
        self.refusals: Counter[tuple[int, str]] = Counter()
        self._lines = {line.custom_id: line for line in lines}
        try:
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise BatchFileError(f"{path}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._ids = self._read()
        except BlockingIOError:
            self._file.close()
            raise BatchFileError(f"{path}: another run is writing it") from None
        except BatchFileError:
            self._file.close()
            raise

    @property
    def left(self) -> list[Line]:
        """The requests without a reply."""
        return [line for line in self._lines.values() if line.custom_id not in self._ids]

    def __len__(self) -> int:
        """All requests of the batch, answered or not."""
        return len(self._lines)

    def check_engine(self, engine: str) -> None:
        """Refuses to go on with another engine than the replies that are there came from; `engine` describes it.
        Raises: BatchFileError."""
        for custom_id, found in self._ids.items():
            if found != reply_id(self._lines[custom_id], engine):
                raise BatchFileError(
                    f"{self.path}: the reply to {custom_id!r} is of another model, circuit or version; "
                    "give another output file"
                )

    def add(self, line: Line, engine: str, response: dict[str, Any]) -> None:
        """Writes the reply to a line; `response` has a `status_code`, a `request_id` and a `body`."""
        own = reply_id(line, engine)
        reply = {"id": own, "custom_id": line.custom_id, "response": response, "error": None}
        data = (json.dumps(reply, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        while data:  # one call, but for a full disk or a signal
            data = data[self._file.write(data) :]
        self._ids[line.custom_id] = own
        self._count(response)

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def _count(self, response: dict[str, Any]) -> None:
        status, body = response["status_code"], response.get("body")
        if status == 200:
            return
        error = body.get("error") if isinstance(body, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        self.refusals[status, str(message or f"HTTP {status}")[:_MAX_MESSAGE]] += 1

    def _read(self) -> dict[str, str]:
        self._file.seek(0)
        whole, _, torn = self._file.read().rpartition(b"\n")
        ids: dict[str, str] = {}
        for number, row in enumerate(whole.split(b"\n") if whole else [], 1):
            try:
                reply = json.loads(row)
                custom_id, own, response = reply["custom_id"], reply["id"], reply["response"]
                status = response["status_code"]
            except (ValueError, LookupError, TypeError, RecursionError):
                raise BatchFileError(f"{self.path}: line {number} is no reply; give another output file") from None
            line = self._lines.get(custom_id)
            if line is None or custom_id in ids or not isinstance(status, int) or not _is_of(own, line):
                raise BatchFileError(
                    f"{self.path}: line {number} is no reply to a line of this input; give another output file"
                )
            ids[custom_id] = own
            self._count(response)
        # Only now, for a file that is none of ours is not ours to cut.
        if torn:
            self._file.truncate(len(whole) + bool(whole))
        return ids


def reply_id(line: Line, engine: str) -> str:
    return f"batch_req_{line.digest}{_digest(engine)}"


def _is_of(own: Any, line: Line) -> bool:
    return isinstance(own, str) and own.startswith(f"batch_req_{line.digest}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
