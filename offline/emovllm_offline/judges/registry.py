"""The options of judges for argparse."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emovllm_offline.judges.judge import Judge, judge_kinds, judge_names, make_judge, option_fields

__all__ = ["add_options", "all_from_options", "from_options", "make_judge"]


def add_options(parser: argparse.ArgumentParser, default: str, several: bool = False) -> None:
    """Adds --judge and what belongs to it; `from_options` reads them; where `several`, `all_from_options`."""
    add = parser.add_argument
    kind: dict[str, Any] = {"type": _judges, "metavar": "NAME[,NAME...]"} if several else {"choices": judge_names()}
    about = ", ".join(f"{kind.name} ({kind.about})" for kind in judge_kinds())
    add("--judge", **kind, default=default, help=f"{about}; default: {default}")
    for field in option_fields():
        if field.flag is not None:
            # The judges' own defaults stand where an option is not given.
            reading: dict[str, Any] = {"type": _labels} if field.name == "labels" else {}
            add(field.flag, dest=f"judge_{field.name}", default=None, help=field.help, metavar=field.metavar, **reading)


def from_options(
    args: argparse.Namespace, emotions: Sequence[str], cache: str | Path | None, concurrency: int
) -> Judge:
    """The judge that the options of `add_options` name. Raises: as `make_judge`."""
    values = {field.name: getattr(args, f"judge_{field.name}", None) for field in option_fields()}
    return make_judge(args.judge, emotions, cache=cache, **{**values, "concurrency": concurrency})


def all_from_options(
    args: argparse.Namespace, emotions: Sequence[str], cache: str | Path | None, concurrency: int
) -> list[Judge]:
    """The judges that `add_options(..., several=True)` names, in their order. Raises: as `make_judge`."""
    return [
        from_options(argparse.Namespace(**{**vars(args), "judge": name}), emotions, cache, concurrency)
        for name in (_judges(args.judge) if isinstance(args.judge, str) else args.judge)
    ]


def _judges(text: str) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [name for name in names if name not in judge_names()]:
        raise argparse.ArgumentTypeError(f"no judge {', '.join(unknown)}: choose from {', '.join(judge_names())}")
    return names


def _labels(text: str) -> dict[str, str]:
    pairs = [part.split("=") for part in text.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"expected THEIRS=OURS with commas between, got {text!r}")
    return {theirs.strip().lower(): ours.strip() for theirs, ours in pairs}
