"""Asynchronous work, waited for by code that is not asynchronous."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")
# Seconds in which work that was handed to a thread has begun there.
_HANDED_OVER = 5.0


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, also where this thread has a loop that runs, as notebooks do: then in a thread of its own,
    which an interrupt of this one cancels."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = Future()
    ended: Future[T] = Future()

    async def begin() -> T:
        begun.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        return await work

    def run() -> None:
        try:
            ended.set_result(asyncio.run(begin()))
        except BaseException as error:
            ended.set_exception(error)

    try:
        threading.Thread(target=run).start()
        return ended.result()
    except BaseException:
        # It may have ended by itself, or an interrupt may have come before it was handed over.
        with contextlib.suppress(RuntimeError, TimeoutError):
            loop, task = begun.result(timeout=_HANDED_OVER)
            assert task is not None
            loop.call_soon_threadsafe(task.cancel)
            wait([ended])
        raise
