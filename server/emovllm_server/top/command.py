"""The loop of `emovllm top`."""

from __future__ import annotations

import time
from collections import deque

from rich.console import Console
from rich.live import Live

from emovllm.errors import ScrapeError
from emovllm_server.top.frame import frame
from emovllm_server.top.scrape import Scrape, address, scrape
from emovllm_server.top.view import view


def top(url: str, *, once: bool, interval: float, window: float, console: Console | None = None) -> int:
    """Shows a server until interrupted, which is its ordinary end; `interval` and `window` in seconds.

    Returns: the exit status. Raises: ScrapeError, where the server does not answer at first; later, it waits.
    """
    console = console or Console()
    where = address(url)
    readings = deque([scrape(where)])
    if once:
        console.print(view(frame(readings[0]), where))
        return 0
    try:
        with Live(
            view(frame(readings[0]), where), console=console, auto_refresh=False, screen=console.is_terminal
        ) as live:
            while True:
                time.sleep(interval)
                trouble = _read(where, readings, window)
                before = readings[0] if len(readings) > 1 else None
                live.update(view(frame(readings[-1], before), where, trouble), refresh=True)
    except KeyboardInterrupt:
        return 0


def _read(url: str, readings: deque[Scrape], window: float) -> str | None:
    """Adds a reading, and drops those older than the window. Returns: why there is none."""
    try:
        readings.append(scrape(url))
    except ScrapeError as error:
        return str(error)
    while len(readings) > 2 and readings[1].at <= readings[-1].at - window:
        readings.popleft()
    return None
