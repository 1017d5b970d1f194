"""What several commands share: options of the same kind."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from cyclopts import Parameter

from emovllm.errors import OptionError
from emovllm.options import QUIET, Options

MODEL = Parameter(help="folder or Hugging Face id (default: the default model)", show_default=False)
PROBE = Parameter(help="the probe's file, or its folder, as `emovllm probe train` wrote it", metavar="DIR")


# Of commands that ask an engine of this machine, or a server that runs.
SERVED_MODEL = Parameter(help="folder or Hugging Face id (default: the default model); its name at --base-url")
SERVED_CIRCUIT = Parameter(help="a folder, or a Hugging Face repository id; its name at --base-url", metavar="DIR")
BASE_URL = Parameter(help="a running emovllm server, such as http://localhost:8000/v1", metavar="URL")
KEY_VARIABLE = Parameter(help="environment variable of that server's key", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class ReplyOptions(Options):
    """How replies are asked for."""

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
    fresh: Annotated[bool, QUIET, Parameter(help="forget what --out holds")] = False


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(ReplyOptions):
    """Options that `evaluate` and `calibrate` share."""

    limit: Annotated[
        int | None, Gt(0), Parameter(help="use only the first N scenarios (of three messages), or lines", metavar="N")
    ] = None
    prompt_style: Annotated[
        str, Parameter(help="the prompts that ask for an emotion, and the neutral one", metavar="NAME|FILE")
    ] = "paper"
    seed: Annotated[int, Parameter(help="of bootstrap and samples", metavar="N")] = 0


def arguments(text: str) -> tuple[str, ...]:
    """Those of `engine_args`. Raises: OptionError."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise OptionError(f"--engine-args {text}: {error}") from None
