"""The options of commands that load a model: where it is run, and in which type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from emovllm.options import Options


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """How a model is loaded, by `emovllm_offline.model.load.load`."""

    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Parameter(help="of the weights; auto: as they are stored"),
    ] = "float32"
    device: Annotated[
        str | None,
        Parameter(
            help="torch device; auto spreads a model over all GPUs (default: cuda where there is one, else cpu)",
            metavar="NAME",
        ),
    ] = None
