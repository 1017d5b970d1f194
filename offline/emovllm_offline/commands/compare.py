"""`emovllm compare`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emovllm.options import FLAT, Options


@dataclass(frozen=True)
class CompareOptions(Options):
    runs: Annotated[
        tuple[str, ...],
        Parameter(
            help="folders that probe train, probe compare, probe prompts, probe separate, evaluate or discover wrote, "
            "or the results' files in them; NAME=DIR gives a run a name (default: its model's)",
            metavar="[NAME=]DIR",
        ),
    ]
    _: KW_ONLY
    out: Annotated[Path, Parameter(help="folder for comparison.json and the report", metavar="DIR")]


def main(options: Annotated[CompareOptions, FLAT]) -> None:
    """Put what several models, or several ways, reached into one table for each kind of run, with intervals, and say
    where runs are of different texts or labels. Needs no model. Writes comparison.json, report.md and report.html.

    Runs of `probe compare` also stand beside the probes that they are of: what the model answers when it is asked.
    """
    from emovllm_offline.comparison.compare import run
    from emovllm_offline.comparison.report import PAGE, tables
    from emovllm_offline.reporting.tables import print_all

    comparison = run(options.runs, options.out)
    print_all(tables(comparison))
    for of in comparison.tables:
        for note in of.notes:
            print(f"{of.kind}: {note}")
    print(options.out / PAGE)
