"""What long work tells of itself where there is no terminal, and in one."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from emovllm import progress
from emovllm.progress import Bar, Stage, stage, track


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_STAGE_SECONDS", 0.02)


def test_a_log_has_a_line_per_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("ab", "letters", 3, done=1, unit="letters")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == ["letters: 2 of 3 letters, 0 s", "letters: 3 of 3 letters, 0 s"]


def test_quick_steps_share_a_line_and_the_last_has_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 60.0)
    with Bar("steps", 1000) as bar:
        bar.tell("warming up")
        for _ in range(1000):
            bar.advance(note="at work")
    assert capsys.readouterr().err.splitlines() == [
        "steps: 0 of 1000, 0 s, warming up",
        "steps: 1000 of 1000, 0 s, at work",
    ]


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_has_a_bar_where_it_has_widgets_and_lines_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, widgets: bool
) -> None:
    monkeypatch.setattr(progress, "_has_widgets", lambda: widgets)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    bars: list[bool] = []
    monkeypatch.setattr(progress.Progress, "start", lambda bar: bars.append(not bar.disable))
    list(track("a", "letters", 1))
    assert bars == [widgets]
    assert capsys.readouterr().err == ("" if widgets else "letters: 1 of 1, 0 s\n")


def test_a_bar_that_is_not_to_be_shown_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("ab", "letters", 2, shown=False)) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_a_stage_tells_its_beginning_that_it_goes_on_and_its_end() -> None:
    told: list[str] = []
    with stage("Compiling", told.append, "a minute"):
        while len(told) < 3:
            time.sleep(0.01)
    assert told[0] == "Compiling (a minute) ..."
    assert set(told[1:-1]) == {"Compiling: 0 s so far"}
    assert told[-1] == "Compiling: done in 0 s"


def test_a_stage_that_fails_is_not_done() -> None:
    told: list[str] = []
    with pytest.raises(KeyError), stage("Compiling", told.append):
        raise KeyError
    assert not any("done" in line for line in told)
    ended = Stage("Loading", told.append)
    ended.end()
    ended.end()
    assert told.count("Loading: done in 0 s") == 1


_IN_A_TERMINAL = """
import time
from emovllm.progress import Stage, track
list(track("ab", "letters", 2))
begun = Stage("Compiling")
time.sleep(0.8)
begun.end()
"""


def test_a_terminal_has_a_bar_and_a_clock() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", _IN_A_TERMINAL], stderr=theirs, env={**os.environ, "TERM": "xterm"}):
        os.close(theirs)
        shown = io.BytesIO()
        while chunk := _read(ours):
            shown.write(chunk)
    os.close(ours)
    text = shown.getvalue().decode()
    assert "2/2" in text
    assert "━" in text
    # Overwritten in place, with the cursor left at the beginning of the line.
    assert re.search(r"\r\x1b\[KCompiling: \d s\r", text)
    assert re.search(r"Compiling: done in \d s\r\n$", text)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # its other end is closed
        return b""
