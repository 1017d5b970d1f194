"""`emovllm report`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emovllm.options import FLAT, Options


@dataclass(frozen=True)
class ReportOptions(Options):
    circuit: Annotated[Path, Parameter(help="the circuit's folder")]
    _: KW_ONLY
    work: Annotated[
        Path | None,
        Parameter(
            help="folder of findings and validation; the page and figures/ go there too (default: CIRCUIT.work)",
            metavar="DIR",
        ),
    ] = None


def main(options: Annotated[ReportOptions, FLAT]) -> None:
    """Draw a circuit, and what discovery and validation measured, as one HTML page without external resources, and as
    PNG files.
    """
    from emovllm_offline.validation.report import report

    print(report(options.circuit, options.work))
