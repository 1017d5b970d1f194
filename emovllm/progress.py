"""How far long work has come: a bar in a terminal or a notebook; elsewhere, in a log, a line now and then."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# In a log: the least time between two lines of a bar, and the time after which a stage tells that it goes on.
_LINE_SECONDS = 5.0
_STAGE_SECONDS = 10.0

# The stage of vLLM's engine, and how long it may take.
ENGINE_START = "Starting the engine"
ENGINE_START_HINT = "with settings that are new it compiles, which takes a minute or more"

T = TypeVar("T")


class Bar:
    """Work of a known number of steps. A context, or `close` it."""

    def __init__(self, what: str, total: int, *, done: int = 0, unit: str = "", shown: bool = True) -> None:
        """what: told before the bar. done: steps of an earlier run. unit: what is counted, in the plural."""
        console = Console(file=sys.stderr)
        self._lines = shown and not (console.is_terminal or (console.is_jupyter and _has_widgets()))
        columns = (
            *(TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn(unit)),
            *(TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")),
        )
        self._progress = Progress(*columns, console=console, disable=not shown or self._lines)
        self._task = self._progress.add_task(what, total=total, completed=done, note="")
        self._unit = unit
        self._begun = self._told = time.monotonic()
        self._progress.start()

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """After `steps` steps. note: replaces what stands behind the bar."""
        changes: dict[str, Any] = {} if note is None else {"note": note}
        self._progress.update(self._task, advance=steps, **changes)
        if self._progress.tasks[0].finished or time.monotonic() - self._told >= _LINE_SECONDS:
            self._write_line()

    def tell(self, note: str) -> None:
        """What is being done now; in a log, a line of its own."""
        self._progress.update(self._task, note=note)
        self._write_line()

    def _write_line(self) -> None:
        if not self._lines:
            return
        task = self._progress.tasks[0]
        self._told = time.monotonic()
        counted = f"{task.completed:.0f} of {task.total:.0f} {self._unit}".rstrip()
        told = [counted, f"{self._told - self._begun:.0f} s", *filter(None, [task.fields["note"]])]
        print(f"{task.description}: {', '.join(told)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._progress.stop()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def track(
    items: Iterable[T], what: str, total: int, *, done: int = 0, unit: str = "", shown: bool = True
) -> Iterator[T]:
    """The items, one step of a bar each."""
    with Bar(what, total, done=done, unit=unit, shown=shown) as bar:
        for item in items:
            yield item
            bar.advance()


class Stage:
    """Work of unknown length, told of when it begins, while it lasts, and when it ends."""

    def __init__(self, what: str, tell: Callable[[str], object] | None = None, hint: str = "") -> None:
        """what: "Compiling the model". tell: takes each line (default: the standard error, and in a terminal the time
        that passes). hint: how long it may take."""
        self._what = what
        self._tell = tell or _say
        self._in_place = tell is None and sys.stderr.isatty()
        self._begun = time.monotonic()
        self._ended = threading.Event()
        self._tell(f"{what}{f' ({hint})' if hint else ''} ...")
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    def end(self, done: bool = True) -> None:
        """Idempotent. done: whether the work has succeeded."""
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            if done:
                self._tell(f"{self._what}: done in {self._seconds()}")

    def _go_on(self) -> None:
        while not self._ended.wait(0.5 if self._in_place else _STAGE_SECONDS):
            if self._in_place:
                # The cursor stays at the line's beginning: what other processes write takes the place of the clock.
                print(f"\r\x1b[K{self._what}: {self._seconds()}\r", end="", file=sys.stderr, flush=True)
            else:
                self._tell(f"{self._what}: {self._seconds()} so far")
        if self._in_place:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _seconds(self) -> str:
        return f"{time.monotonic() - self._begun:.0f} s"


@contextmanager
def stage(what: str, tell: Callable[[str], object] | None = None, hint: str = "") -> Iterator[None]:
    """A `Stage` for the length of a block."""
    begun = Stage(what, tell, hint)
    try:
        yield
    except BaseException:
        begun.end(done=False)
        raise
    begun.end()


def _has_widgets() -> bool:
    """Without them, all that Rich shows of a bar in a notebook is a warning."""
    return importlib.util.find_spec("ipywidgets") is not None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
