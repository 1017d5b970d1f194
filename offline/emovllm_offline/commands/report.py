"""`emovllm report`: its options. Heavy imports wait until it runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import sys

from emovllm.errors import EmovllmError

DESCRIPTION = """Draw a circuit, and what discovery and validation measured, as one HTML page without external
resources, and as PNG files."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `report` to its parser."""
    parser.description = DESCRIPTION
    parser.add_argument("circuit", help="the circuit's folder")
    parser.add_argument(
        "--work",
        metavar="DIR",
        help="folder of findings and validation; the page and figures/ go there too (default: CIRCUIT.work)",
    )


def main(args: argparse.Namespace) -> int:
    """Runs `report`; returns the exit status."""
    from emovllm_offline.validation.report import report

    try:
        print(report(args.circuit, args.work))
    except (EmovllmError, OSError) as error:
        print(f"emovllm report: {error}", file=sys.stderr)
        return 1
    return 0
