"""`emovllm top`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from annotated_types import Interval
from cyclopts import Parameter

from emovllm.options import FLAT, QUIET, Options


@dataclass(frozen=True)
class TopOptions(Options):
    url: Annotated[str, Parameter(help="the server")] = "http://127.0.0.1:8000"
    _: KW_ONLY
    once: Annotated[bool, QUIET, Parameter(help="print one frame, of the time since the server's start, and end")] = (
        False
    )
    interval: Annotated[float, Interval(ge=0.1, le=3600), Parameter(help="seconds between frames", metavar="S")] = 1.0
    window: Annotated[
        float, Interval(ge=0.1, le=3600), Parameter(help="rates and latencies are of the last S seconds", metavar="S")
    ] = 30.0


def main(options: Annotated[TopOptions, FLAT] = TopOptions()) -> int:
    """Watches a server of `emovllm serve`: requests and tokens per second, latencies and running requests by emotion,
    use of the KV cache, hit rate of the prefix cache, refusals. Ctrl-C ends it.
    """
    from emovllm_server.top.command import top

    return top(options.url, once=options.once, interval=options.interval, window=options.window)
