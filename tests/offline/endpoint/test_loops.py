from __future__ import annotations

import asyncio
import signal
import threading
import time

import pytest

from emovllm_offline.endpoint.loops import wait_for


async def answer() -> tuple[int, str]:
    await asyncio.sleep(0)
    return 42, threading.current_thread().name


async def fail() -> None:
    raise ValueError("told")


def test_without_a_loop_work_is_done_in_this_thread() -> None:
    assert wait_for(answer()) == (42, threading.current_thread().name)


def test_beside_a_loop_work_is_done_in_another_thread() -> None:
    async def cell() -> tuple[int, str]:
        with pytest.raises(ValueError, match="told"):
            wait_for(fail())
        return wait_for(answer())

    number, thread = asyncio.run(cell())
    assert number == 42
    assert thread != threading.current_thread().name


def test_an_interrupt_cancels_work_in_another_thread() -> None:
    cancelled = threading.Event()
    begun = threading.Event()

    async def long() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def interrupt() -> None:
        begun.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]

    async def cell() -> None:
        # A notebook's loop leaves the signal to Python; `asyncio.run` does not.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=interrupt).start()
        wait_for(long())

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(cell())
    assert cancelled.is_set()
    assert time.monotonic() - start < 30


def test_an_interrupt_while_the_thread_starts_waits_until_the_work_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    begun = threading.Event()
    start = threading.Thread.start

    async def long() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            # Late, so that whoever does not wait for it finds it unfinished.
            time.sleep(0.2)
            ended.set()

    def interrupted(thread: threading.Thread) -> None:
        """As where the signal comes before the executor has noted the thread."""
        start(thread)
        assert begun.wait(60)
        raise KeyboardInterrupt

    async def cell() -> None:
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        wait_for(long())

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(cell())
    assert ended.is_set()
