"""`emovllm top`: its options."""

from __future__ import annotations

import argparse
import sys

DESCRIPTION = """Watches a server of `emovllm serve`: requests and tokens per second, latencies and running requests by
emotion, use of the KV cache, hit rate of the prefix cache, refusals. Ctrl-C ends it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `top` to its parser."""
    parser.description = DESCRIPTION
    add = parser.add_argument
    add("url", nargs="?", default="http://127.0.0.1:8000", help="the server (default: http://127.0.0.1:8000)")
    add("--once", action="store_true", help="print one frame, of the time since the server's start, and end")
    add("--interval", type=_seconds, default=1.0, metavar="S", help="seconds between frames (default: 1)")
    add(
        "--window",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="rates and latencies are of the last S seconds (default: 30)",
    )


def main(args: argparse.Namespace) -> int:
    """Runs `top`; returns the exit status."""
    from emovllm.errors import ScrapeError
    from emovllm_server.top.command import top

    try:
        return top(args.url, once=args.once, interval=args.interval, window=args.window)
    except ScrapeError as error:
        print(f"emovllm top: {error}", file=sys.stderr)
        return 1


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"expected seconds, 0.1 to 3600, got {text!r}")
    return value
