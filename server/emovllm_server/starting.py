"""What a server that starts tells of it: from the command to the first request it takes."""

from __future__ import annotations

from emovllm.progress import Stage

_stage: Stage | None = None


def begin() -> None:
    """The engine starts, in processes of its own."""
    global _stage
    _stage = Stage("Starting the engine", hint="with settings that are new it compiles, which takes a minute or more")


def end(done: bool = True) -> None:
    """The engine is there, or has failed. Nothing happens where no start was told of."""
    global _stage
    if _stage is not None:
        _stage.end(done)
        _stage = None
