"""Work that grows line by line: JSON lines, written as they come, beside the settings that they were made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from emovllm.errors import StoredError
from emovllm.files import first_fault, write_atomically, write_json
from emovllm_offline.storage.lock import Lock, locked
from emovllm_offline.storage.settings import read_settings, refuse_others

Row = TypeVar("Row", bound=BaseModel)


class Lines(Generic[Row]):
    """A file of JSON lines that grows. What an interruption left of a last line is cut off the file."""

    def __init__(self, path: Path, kind: type[Row], remedy: str = "delete the file", lock: Lock | None = None) -> None:
        """remedy: what to do about a damaged file. lock: of its folder, to be kept. Raises: StoredError, naming the
        line."""
        self.path = path
        self._lock = lock
        self.rows: list[Row] = []
        for number, line in enumerate(_whole_lines(path), 1):
            try:
                self.rows.append(kind.model_validate_json(line))
            except ValidationError as error:
                raise StoredError(f"{path}, line {number}: damaged ({first_fault(error)}); {remedy}") from None

    def append(self, *rows: Row) -> None:
        """Writes rows to the end of the file, which is made with its folder where it is not there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(row.model_dump_json(by_alias=True) + "\n" for row in rows))
        self.rows += rows

    def replace(self, rows: Mapping[int, Row]) -> None:
        """Puts rows in the places of others: readers see the old file or the whole new one. rows: by their number,
        from 0."""
        if not rows:
            return
        new = [rows.get(number, row) for number, row in enumerate(self.rows)]
        write_atomically(self.path, "".join(row.model_dump_json(by_alias=True) + "\n" for row in new).encode())
        self.rows = new

    def keep(self, count: int) -> None:
        """Cuts the file to its first `count` rows."""
        if count >= len(self.rows):
            return
        lines = self.path.read_bytes().split(b"\n")
        with self.path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines[:count]))
        del self.rows[count:]


class Journal:
    """A folder of one run: a file of its settings, and files that grow. It is refused with other settings, and where
    another process is at work on it: one has the folder for as long as its journal, or a file of it, lives."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], *, name: str, files: Sequence[str], remedy: str, fresh: bool
    ) -> None:
        """Takes up the run that is in the folder, or begins one.

        name: of the settings' file. files: what belongs to the run besides. remedy: what a user may do instead of
        going on, such as "give --fresh, or another --out". fresh: forgets what is there.
        Raises: StoredError where the folder holds a run with other settings, one whose settings are missing, or one
            that another process is at.
        """
        self.folder = folder
        self._remedy = remedy
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = locked(folder)
        if fresh:
            for file in (name, *files):
                (folder / file).unlink(missing_ok=True)
        before = read_settings(folder / name, remedy)
        if before is not None:
            refuse_others(folder, before, settings, remedy)
            return
        if orphans := [file for file in files if (folder / file).exists()]:
            raise StoredError(f"{folder}: has {', '.join(orphans)} but no {name}: it cannot be continued; {remedy}")
        write_json(folder / name, settings)

    def lines(self, name: str, kind: type[Row]) -> Lines[Row]:
        """One of the files that grow. Raises: StoredError."""
        return Lines(self.folder / name, kind, self._remedy, self._lock)


def _whole_lines(path: Path) -> list[bytes]:
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    # Not splitlines(): JSON may hold separators, such as U+2028, at which that would split.
    return content[:whole].split(b"\n")[:-1]
