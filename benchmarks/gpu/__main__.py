#!/usr/bin/env python3
"""Is emovllm exact on this GPU, and what does it cost there? Everything that needs a card, in 25 minutes of it.

    python -m benchmarks.gpu --out DIR
    python -m benchmarks.gpu --out DIR --only exactness speed-3b

Needs emovllm with its `gpu` extra, and one GPU with some 80 GB free. Writes DIR/report.md after every step. Cut at any
time, it goes on where it stopped when it is run again; a step that failed is tried again, and one that is done where
its folder was removed. Exits with 1 where a step failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import commands, report
from benchmarks.gpu.plan import PLANS
from benchmarks.gpu.run import DONE, FAILED, Run, Step, outcome_of, perform
from benchmarks.gpu.steps import steps
from emovllm.environment import reach_loopback_directly
from emovllm.files import write_json
from emovllm_server.serve import prepare_environment
from emovllm_server.terminating import as_interrupted

# What must not change from one run of a folder to the next.
_IDENTITY = ("gpu", "emovllm", "vllm", "torch", "size")


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    # What is cut may take a moment to end its engines.
    end = time.monotonic() + 60 * args.budget - commands.PATIENCE_S
    planned = steps(PLANS[args.size])
    chosen = [step for step in planned if not args.only or any(step.name.startswith(name) for name in args.only)]
    if not chosen:
        raise SystemExit(f"--only: no step is called so; there are {', '.join(step.name for step in planned)}")
    args.out.mkdir(parents=True, exist_ok=True)
    folder = args.out.resolve()
    prepare_environment()
    reach_loopback_directly()
    # Several engines at once: the default, nine tenths of a CPU machine's memory for each, cannot be had.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    run = Run(folder, PLANS[args.size], machine_of(folder, args.size))
    command = "python -m benchmarks.gpu --out DIR" + (f" --only {shlex.join(args.only)}" if args.only else "")

    def told() -> None:
        report.write(folder, run.machine, planned, command)

    try:
        with as_interrupted():
            for step in chosen:
                _one(run, step, end - time.monotonic())
                told()
    except KeyboardInterrupt:
        told()
        return 130
    outcomes = [outcome_of(folder / step.name) for step in chosen]
    return int(any(outcome is not None and outcome.status == FAILED for outcome in outcomes))


def _one(run: Run, step: Step, seconds: float) -> None:
    known = outcome_of(run.folder / step.name)
    if known is not None and known.status == DONE:
        print(f"{step.name}: done before", flush=True)
        return
    print(f"{step.name} ...", flush=True)
    outcome = perform(run, step, seconds)
    if outcome is None:
        print(f"{step.name}: not run, for the time is over; run this again, or give a larger --budget", flush=True)
    else:
        print(f"{step.name}: {outcome.status}, {outcome.seconds:.0f} s", flush=True)


def machine_of(folder: Path, size: str) -> dict[str, Any]:
    """As it was when the folder was new: sizes follow from the memory that was free then.

    Raises: SystemExit where it is another machine, or cannot be asked.
    """
    if commands.run(["-m", "benchmarks.gpu.machine"], folder / "machine.now", folder / "machine.log"):
        raise SystemExit(f"the machine could not be asked:\n{commands.last_words(folder / 'machine.log')}")
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    now = {**json.loads((folder / "machine.now").read_text()), "size": size, "date": date}
    path = folder / "machine.json"
    if not path.exists():
        write_json(path, now)
        return now
    there: dict[str, Any] = json.loads(path.read_text())
    differing = [name for name in _IDENTITY if there.get(name) != now.get(name)]
    if differing:
        said = "; ".join(f"{name} {there.get(name)} there, {now.get(name)} now" for name in differing)
        raise SystemExit(f"{folder.name} holds what was measured elsewhere ({said}): give another --out")
    return there


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="report.md, and a folder for each step")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help="names, or how they begin")
    parser.add_argument("--budget", type=float, default=25, metavar="MINUTES", help="default: %(default)s")
    parser.add_argument(
        "--size", choices=PLANS, default="full", help="tiny: a tiny model, on a CPU too, to try the script"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
