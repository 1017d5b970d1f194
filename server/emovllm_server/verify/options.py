"""The options of `emovllm verify` that are neither vLLM's nor those of `emovllm serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Of the timing; pairs of runs, plain and steered in turn.
ROUNDS = 5


def add_options(parser: Any) -> None:
    """parser: argparse's, or vLLM's."""
    add = parser.add_argument
    add("--json", action="store_const", const=True, help="Print what was found as JSON, in place of the report.")
    add("--rounds", type=int, help=f"Pairs of timed runs; 0 leaves the timing out (default: {ROUNDS}).")
    add("--logs", type=Path, metavar="DIR", help="Keep the engines' logs there (default: they go where all is well).")
