"""What a test, or a library that it imports, does to logging is undone after it: some set the root logger's level."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# Level, disabled, propagate and handlers, as of a logger that nobody has set up.
_State = tuple[int, bool, bool, list[logging.Handler]]
_NEW: _State = (logging.NOTSET, False, True, [])


@contextmanager
def restored_logging() -> Iterator[None]:
    """The root logger and ours are afterwards as they were. vLLM's and others' stay as their imports set them up."""
    before = {logger: _state(logger) for logger in _loggers()}
    below = logging.root.manager.disable
    try:
        yield
    finally:
        logging.disable(below)
        for logger in _loggers():
            level, logger.disabled, logger.propagate, handlers = before.get(logger, _NEW)
            logger.handlers = list(handlers)
            logger.setLevel(level)


def _loggers() -> list[logging.Logger]:
    named = logging.root.manager.loggerDict.items()
    ours = [entry for name, entry in named if name.startswith("emovllm") and isinstance(entry, logging.Logger)]
    return [logging.root, *ours]


def _state(logger: logging.Logger) -> _State:
    return logger.level, logger.disabled, logger.propagate, list(logger.handlers)
