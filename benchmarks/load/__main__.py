#!/usr/bin/env python3
"""Loads a server with concurrent streaming clients, and checks each reply against the one that it must be.

    scripts/env python -m benchmarks.load --out DIR                                # a tiny model's server, started here
    scripts/env python -m benchmarks.load --out DIR --url URL --pid PID            # one that runs already

Requests have no emotion, one of any strength and scope, or a blend. The server first gives each of them its reply one
at a time; under load, a reply is right where its text is that one, to the last character. Some clients disconnect in
the middle.
Exits with 1 where a reply was wrong or lost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from benchmarks.load import asks
from benchmarks.load.report import Result
from benchmarks.load.run import Settings, run
from emovllm.environment import reach_loopback_directly
from support import tiny
from support.servers import Server


def main() -> int:
    parser = _parser()
    args = parser.parse_args()
    reach_loopback_directly()
    if bool(args.url) != bool(args.pid):
        parser.error("--url and --pid go together")
    settings = Settings(
        clients=args.clients,
        seconds=args.seconds,
        warmup_s=args.warmup,
        asks=args.asks,
        tokens=args.tokens,
        leaving=args.leaving,
        seed=args.seed,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        result = run(args.url, args.pid, settings) if args.url else _run_tiny(settings, args.out, args.serve)
    except asks.NoReply as error:
        raise SystemExit(f"load: {error}") from None
    result.write(args.out)
    print(result.markdown())
    for failure in result.tally.failures[:5]:
        print(failure)
    return int(result.failed > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="load.json, load.md, load.png")
    parser.add_argument("--url", help="a running server; --pid names its first process, for its memory")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--warmup", type=float, default=120, metavar="SECONDS", help="not counted as growth of memory")
    parser.add_argument("--asks", type=int, default=300, help="different requests")
    parser.add_argument("--tokens", type=int, default=32, help="of each reply")
    parser.add_argument("--leaving", type=float, default=0.05, help="share of requests whose client goes away")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", default="", metavar="ARGUMENTS", help="more arguments for the server started here")
    return parser


def _run_tiny(settings: Settings, out: Path, arguments: str) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        server = Server([*tiny.command(Path(folder), settings.seed), *arguments.split()], out / "server.log")
        try:
            server.wait()
            return run(server.url, server.process.pid, settings)
        finally:
            server.close()


if __name__ == "__main__":
    sys.exit(main())
