"""What the results of all functions have in common: rows and pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emovllm.files import write_atomically

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as a PNG file, which notebooks show."""

    png: bytes = field(repr=False)

    @classmethod
    def of(cls, figure: Any) -> Picture:
        """Of Matplotlib's."""
        from emovllm_offline.reporting import plots

        return cls(plots.png(figure))

    def _repr_png_(self) -> bytes:
        return self.png

    def save(self, path: str | Path) -> None:
        write_atomically(Path(path), self.png)
