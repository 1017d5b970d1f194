"""Reports of probes: as Markdown, and as one page with its figures inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emovllm.files import write_atomically
from emovllm_offline.reporting.page import render
from emovllm_offline.reporting.tables import Table

PAGE = "report.html"
MARKDOWN = "report.md"


@dataclass(frozen=True, slots=True)
class Section:
    """image: a figure's data URI, which the page alone shows."""

    title: str
    text: str
    table: Table
    image: str | None = None


def write_document(title: str, summary: str, notes: Sequence[str], sections: Sequence[Section], out: Path) -> None:
    """PAGE and MARKDOWN in the folder `out`, which is made where it is not there. Raises: OSError."""
    out.mkdir(parents=True, exist_ok=True)
    page = render("probe.j2", title=title, summary=summary, notes=notes, sections=sections)
    write_atomically(out / PAGE, page.encode())
    parts = [f"# {title}", summary, *notes]
    for section in sections:
        parts += [f"## {section.title}", section.text, section.table.markdown()]
    write_atomically(out / MARKDOWN, ("\n\n".join(part.strip() for part in parts) + "\n").encode())


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)
