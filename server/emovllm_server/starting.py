"""What a server that starts tells of it: from the command to the first request it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from emovllm.progress import ENGINE_START, ENGINE_START_HINT, Stage

_stage: Stage | None = None


@contextmanager
def starting() -> Iterator[None]:
    """The engine starts in this block, in processes of its own, and has done so with `ready`; a block that ends before
    has failed."""
    global _stage
    stage = _stage = Stage(ENGINE_START, hint=ENGINE_START_HINT)
    try:
        yield
    finally:
        stage.end(done=False)
        _stage = None


def ready() -> None:
    """The engine is there. Nothing happens where no start was told of, as under plain vLLM."""
    if _stage is not None:
        _stage.end()
