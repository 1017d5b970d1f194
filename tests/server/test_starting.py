"""The clock of a start: it ends when the engine is there, or when the start has failed."""

from __future__ import annotations

import threading

import pytest

from emovllm_server.starting import ready, starting


def clocks() -> int:
    """Threads that tell the time of a stage."""
    return sum("_go_on" in thread.name for thread in threading.enumerate())


def test_a_start_that_succeeds_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with starting():
        assert clocks() == 1
        ready()
        assert clocks() == 0
        ready()
    ready()
    told = capsys.readouterr().err
    assert told.count("Starting the engine (") == 1
    assert told.count("Starting the engine: done in ") == 1


def test_a_start_that_fails_ends_the_clock_and_says_nothing_of_success(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no memory"), starting():
        raise ValueError("no memory")
    assert clocks() == 0
    assert "done in" not in capsys.readouterr().err
