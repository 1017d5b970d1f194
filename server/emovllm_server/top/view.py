"""A frame as a table."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from emovllm_server.top.frame import Frame, Quantiles, ReadRow, Row

# Of what replies read as, the first.
_LABELS = 3


def view(frame: Frame, url: str, trouble: str | None = None) -> RenderableType:
    """What to print; `trouble` is why the frame is an old one."""
    span = "since the server's start" if frame.seconds is None else f"over the last {frame.seconds:.0f} s"
    head = Text.assemble((url, "bold"), f"  {frame.version}  circuits: {', '.join(frame.circuits) or 'none'}")
    told = f"latencies: p50/p95, {span}; a request counts when it ends"
    # In a narrow terminal long names fold, the usual six do not.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), caption=told, caption_justify="left")
    table.add_column("emotion", overflow="fold", min_width=9, header_style="bold")
    for name in ("run", "requests", "tokens", "req/s", "tok/s", "TTFT ms", "TPOT ms", "end-to-end s"):
        table.add_column(name, justify="right", no_wrap=True, header_style="bold")
    for row in frame.rows:
        table.add_row(*_cells(row), style="" if row.running or row.requests else "dim")
    refused = ", ".join(f"{reason} {count}" for reason, count in frame.refusals.items()) or "none"
    foot = (
        f"KV cache used {_percent(frame.kv_use)}   prefix cache hits {_percent(frame.hit_rate)}   "
        f"waiting {frame.waiting}\nrefusals since the server's start: {refused}"
    )
    parts: list[RenderableType] = [head, table]
    if frame.read:
        parts.append(_read_table(frame.read))
    parts.append(Text(foot))
    if trouble:
        parts.append(Text(trouble, style="bold red"))
    return Group(*parts)


def _read_table(rows: tuple[ReadRow, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("emotion", overflow="fold", min_width=9, header_style="bold")
    for name in ("replies read", "asked leads"):
        table.add_column(name, justify="right", no_wrap=True, header_style="bold")
    table.add_column("the model reads as", overflow="fold", header_style="bold")
    for row in rows:
        means = ", ".join(f"{label} {value:.0%}" for label, value in row.means[:_LABELS])
        table.add_row(row.emotion, str(row.replies), _percent(row.leads), means)
    return table


def _cells(row: Row) -> list[str]:
    return [
        row.emotion,
        str(row.running),
        str(row.requests),
        str(row.tokens),
        _rate(row.request_rate),
        _rate(row.token_rate),
        _pair(row.ttft, 1000, 0),
        _pair(row.tpot, 1000, 1),
        _pair(row.e2e, 1, 2),
    ]


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _pair(quantiles: Quantiles, scale: float, digits: int) -> str:
    if math.isnan(quantiles.median):
        return "-"
    return "/".join(_figures(value * scale, digits) for value in (quantiles.median, quantiles.p95))


def _figures(value: float, digits: int) -> str:
    """With as many decimals as three figures leave room for, and `digits` at most."""
    whole = len(str(int(abs(value))))
    return f"{value:.{max(0, min(digits, 3 - whole))}f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"
