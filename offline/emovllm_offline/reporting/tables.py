"""One table, for the terminal, for Markdown, and for a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table as RichTable

# Where nobody looks at a table, in a file, it need not fold.
FILE_WIDTH = 220
_NUMBER = re.compile(r"[+-]?[\d.]+( \([+-]?[\d.]+\)\*?)?")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text below a head; the first column names the rows.

    title: shown in the terminal alone. foot: further rows, below a line there.
    Raises: ValueError where a row is not as long as the head.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str | None = None
    foot: Sequence[Sequence[str]] = ()

    def __post_init__(self) -> None:
        for row in self._all_rows():
            if len(row) != len(self.head):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.head)} columns: {row}")

    def terminal(self) -> RichTable:
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=None if self.title is None else Text(self.title), title_justify="left")
        for i, column in enumerate(self.head):
            table.add_column(Text(column), justify="right" if i else "left")
        for row in self.rows:
            # A bracket in a text is no markup.
            table.add_row(*map(Text, row))
        table.add_section()
        for row in self.foot:
            table.add_row(*map(Text, row))
        return table

    def print(self) -> None:
        print_all([self])

    def markdown(self) -> str:
        lines = [_line(self.head), "|---" + "|---:" * (len(self.head) - 1) + "|", *map(_line, self._all_rows())]
        return "\n".join(lines) + "\n"

    def __html__(self) -> str:
        """What a template shows for the table. Numbers, also with another in brackets behind, are set to the right."""
        from emovllm_offline.reporting.page import render

        cells = [[(text, bool(_NUMBER.fullmatch(text))) for text in row] for row in self._all_rows()]
        return render("table.j2", head=self.head, rows=cells)

    def _all_rows(self) -> list[Sequence[str]]:
        return [*self.rows, *self.foot]


def print_all(parts: Iterable[Any]) -> None:
    """Prints tables, and texts between them, to the terminal or the file that stands for it."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    for part in parts:
        console.print(part.terminal() if isinstance(part, Table) else part)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
