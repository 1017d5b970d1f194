"""The end of an engine, as its clients and its supervisor see it."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

_shut_down: weakref.WeakSet[Any] = weakref.WeakSet()
_died = False


def watch() -> None:
    """Makes engines of this process end their streams with them, and a death known. Idempotent."""
    from vllm.v1.engine.async_llm import AsyncLLM

    if not hasattr(AsyncLLM.shutdown, "_emovllm"):
        AsyncLLM.shutdown = _watched(AsyncLLM.shutdown)


def died() -> bool:
    """Whether an engine was dead before this process shut it down.

    vLLM's server then ends as if it had been asked to, with status 0, and a supervisor would not restart it.
    """
    return _died


def _watched(shutdown: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(shutdown)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        global _died
        # Asked by a signal, the server shuts an engine down from another thread, and a second time when it ends itself:
        # what is dead by then has not died of itself. One that could not start has no core.
        if self not in _shut_down and threading.current_thread() is threading.main_thread():
            _died = _died or (hasattr(self, "engine_core") and self.errored)
        _shut_down.add(self)
        shutdown(self, *args, **kwargs)
        _end_streams(self)

    wrapped._emovllm = True  # type: ignore[attr-defined]
    return wrapped


def _end_streams(engine: Any) -> None:
    """Before 0.33, vLLM leaves the requests of an engine that was shut down waiting for good, and its server waits for
    their clients."""
    handler = getattr(engine, "output_handler", None)
    if handler is not None and not handler.get_loop().is_closed():
        loop = handler.get_loop()
        loop.call_soon_threadsafe(engine.output_processor.propagate_error, engine.dead_error)
