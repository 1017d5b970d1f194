"""`emovllm judge-report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emovllm.options import FLAT, QUIET, Options


@dataclass(frozen=True, kw_only=True)
class JudgeReportOptions(Options):
    out: Annotated[
        Path | None, Parameter(help="folder for judge-report.json and judge-confusion.png", metavar="DIR")
    ] = None
    fit: Annotated[
        bool,
        QUIET,
        Parameter(
            help="fit the packaged head anew first, after a change of the sentences: this rewrites a file of the "
            "package"
        ),
    ] = False


def main(options: Annotated[JudgeReportOptions, FLAT] = JudgeReportOptions()) -> None:
    """Measure how often the built-in local judge is right: five-fold cross-validation on the sentences that it is
    fitted on, and replies that were kept apart, with confusion matrices, and the same on texts without any emotion
    word. The lexicon judge is measured beside it.
    """
    from emovllm_offline.judges.local import fit_packaged
    from emovllm_offline.judges.report import judge_report

    if options.fit:
        fit_packaged()
    report = judge_report()
    report.print()
    if options.out is not None:
        report.save(options.out)
