"""Commands in processes of their own, and how long a step may take."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

# A terminated benchmark ends its engines and reports first.
PATIENCE_S = 30
_LAST_LINES, _LINE = 15, 300


class StepFailed(Exception):
    """With the step's last words."""


class TimeLimit(Exception):
    """A step's time is over."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises: TimeLimit within the block, once so many seconds are over."""

    def end(*_: object) -> NoReturn:
        raise TimeLimit

    handler = signal.signal(signal.SIGALRM, end)
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining)
        signal.signal(signal.SIGALRM, handler)


def run(words: Sequence[str], stdout: Path, log: Path, env: Mapping[str, str] | None = None) -> int:
    """Runs `python WORDS`, its standard error into `log`; ended with whatever ends the wait for it.

    Returns: its exit status.
    """
    with stdout.open("w") as out, log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            env={**os.environ, **(env or {})},
            # Ctrl-C is this process's to handle.
            start_new_session=True,
        )
        try:
            return process.wait()
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_words(log: Path) -> str:
    """The end of a log, for the report."""
    lines = [line.rstrip()[:_LINE] for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-_LAST_LINES:])
