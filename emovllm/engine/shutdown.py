"""The end of an engine, as its clients and its supervisor see it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from emovllm.engine.patching import patches

_shut_down: weakref.WeakSet[Any] = weakref.WeakSet()
_died = False


def died() -> bool:
    """Whether an engine was dead before this process shut it down.

    vLLM's server then ends as if it had been asked to, with status 0, and a supervisor would not restart it.
    """
    return _died


@patches("vllm.v1.engine.async_llm.AsyncLLM.shutdown")
def watch(shutdown: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    """Engines of this process end their streams with them, and a death becomes known."""
    global _died
    # Asked by a signal, the server shuts an engine down from another thread, and a second time when it ends itself:
    # what is dead by then has not died of itself. One that could not start has no core.
    if self not in _shut_down and threading.current_thread() is threading.main_thread():
        _died = _died or (hasattr(self, "engine_core") and self.errored)
    _shut_down.add(self)
    shutdown(self, *args, **kwargs)
    _end_streams(self)


def _end_streams(engine: Any) -> None:
    """Before 0.33, vLLM leaves the requests of an engine that was shut down waiting for good, and its server waits for
    their clients."""
    handler = getattr(engine, "output_handler", None)
    if handler is not None and not handler.get_loop().is_closed():
        loop = handler.get_loop()
        loop.call_soon_threadsafe(engine.output_processor.propagate_error, engine.dead_error)
