"""What vLLM's CPU platform turns off, turned on again: called in an engine's process before vLLM is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def async_scheduling() -> None:
    """Schedules each step before the last one's tokens are known, as on a GPU. Streams and events mean nothing on a
    CPU, whose copies are done when they return."""
    import torch
    from vllm.platforms.cpu import CpuPlatform

    class Nothing:
        """A stream, an event, and the context of a stream."""

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *args: object) -> None: ...
        def wait_stream(self, other: Any) -> None: ...
        def wait_event(self, other: Any) -> None: ...
        def record(self, *args: Any) -> None: ...
        def synchronize(self) -> None: ...

    for name in ("Stream", "Event", "stream", "current_stream"):
        setattr(torch.cuda, name, Nothing)
    torch.Event = Nothing  # type: ignore[misc, assignment]

    def kept(check: Callable[..., None], vllm_config: Any) -> None:
        check(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    _after_check(CpuPlatform, kept)


def piecewise() -> None:
    """Compiles with vLLM's own backend, which splits the graph at attention, as on a GPU."""
    from vllm.compilation.passes.utility import fix_functionalization
    from vllm.config import CompilationMode
    from vllm.platforms.cpu import CpuPlatform

    # Its rewrites are of CUDA's operators.
    fix_functionalization.FixFunctionalizationPass.__call__ = lambda self, graph: None

    def kept(check: Callable[..., None], vllm_config: Any) -> None:
        check(vllm_config)
        compilation = vllm_config.compilation_config
        if compilation.mode == CompilationMode.DYNAMO_TRACE_ONCE:
            compilation.mode = CompilationMode.VLLM_COMPILE
            compilation.backend = "inductor"
            compilation.compile_sizes = []

    _after_check(CpuPlatform, kept)


def _after_check(platform: Any, kept: Callable[..., None]) -> None:
    check = platform.check_and_update_config
    platform.check_and_update_config = classmethod(lambda cls, vllm_config: kept(check, vllm_config))
