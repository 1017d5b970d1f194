"""What several commands share: options of the same kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from cyclopts import Parameter

from emovllm.options import QUIET, Options

MODEL = Parameter(help="folder or Hugging Face id (default: the default model)", show_default=False)
PROBE = Parameter(help="the probe's file, or its folder, as `emovllm probe train` wrote it", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(Options):
    """Options that `evaluate` and `calibrate` share."""

    limit: Annotated[
        int | None, Gt(0), Parameter(help="use only the first N scenarios (of three messages), or lines", metavar="N")
    ] = None
    prompt_style: Annotated[
        str, Parameter(help="the prompts that ask for an emotion, and the neutral one", metavar="NAME|FILE")
    ] = "paper"
    max_tokens: Annotated[int, Gt(0), Parameter(help="of a reply", metavar="N")] = 100
    concurrency: Annotated[int, Gt(0), Parameter(help="requests at a time", metavar="N")] = 64
    engine_args: Annotated[
        str,
        QUIET,
        Parameter(
            help="further arguments of vllm serve, in one string, for the local engine",
            metavar="ARGS",
            allow_leading_hyphen=True,
        ),
    ] = ""
    seed: Annotated[int, Parameter(help="of bootstrap and samples", metavar="N")] = 0
    fresh: Annotated[bool, QUIET, Parameter(help="forget what --out holds")] = False
