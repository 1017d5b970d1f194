"""`emovllm judge-report`: its options. Heavy imports wait until it runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import sys

from emovllm.errors import EmovllmError

DESCRIPTION = """Measure how often the built-in local judge is right: five-fold cross-validation on the sentences that
it is fitted on, and replies that were kept apart, with confusion matrices, and the same on texts without any emotion
word. The lexicon judge is measured beside it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `judge-report` to its parser."""
    parser.description = DESCRIPTION
    parser.add_argument("--out", metavar="DIR", help="folder for judge-report.json and judge-confusion.png")
    parser.add_argument(
        "--fit",
        action="store_true",
        help="fit the packaged head anew first, after a change of the sentences: this rewrites a file of the package",
    )


def main(args: argparse.Namespace) -> int:
    """Runs `judge-report`; returns the exit status."""
    from emovllm_offline.judges.local import fit_packaged
    from emovllm_offline.judges.report import judge_report

    try:
        if args.fit:
            fit_packaged()
        report = judge_report()
        report.print()
        if args.out is not None:
            report.save(args.out)
    except (EmovllmError, OSError) as error:
        print(f"emovllm judge-report: {error}", file=sys.stderr)
        return 1
    return 0
