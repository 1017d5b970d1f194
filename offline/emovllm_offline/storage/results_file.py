"""One file of JSON that holds all that a command found."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from emovllm.errors import ResultsError
from emovllm.files import read_json, write_atomically
from emovllm.spec import Frozen


class ResultsFile(Frozen):
    """FILE: what it is called in its folder."""

    FILE: ClassVar[str]

    def save(self, folder: str | Path) -> None:
        """Raises: OSError."""
        write_atomically(Path(folder) / self.FILE, (self.model_dump_json(indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Raises: ResultsError."""
        return read_json(Path(folder) / cls.FILE, cls, ResultsError)
