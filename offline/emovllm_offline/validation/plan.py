"""What a validation sweeps, and what it is made on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Gt
from cyclopts import Parameter

from emovllm.options import COMMAS, FLAT, QUIET, REPEATED, Options
from emovllm_offline.model.options import ModelOptions

K = int | Literal["all"]


# The help says that `all` is one of them.
COUNTS = Parameter.combine(COMMAS, Parameter(show_choices=False))


@dataclass(frozen=True, kw_only=True)
class Plan(Options):
    """What is swept.

    neurons, heads: the k of the sweeps (k = 0 is always there); `all` is as many as the layer has that has most. A k
    above that is left out; of a layer that has fewer than k, all are taken. scale: the lambda of enhancement. seeds:
    how many random controls.
    """

    neurons: Annotated[
        tuple[K, ...], COUNTS, Parameter(help="how many neurons of every layer: numbers, or all", metavar="K,K,...")
    ] = (2, 4, 8, 16, 32, 64, 128, 256, 512)
    heads: Annotated[
        tuple[K, ...], COUNTS, Parameter(help="how many heads of every layer: numbers, or all", metavar="K,K,...")
    ] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    scale: Annotated[float, Parameter(name="--lambda", help="of enhancement", metavar="X")] = 1.0
    seeds: Annotated[int, Parameter(help="random controls", metavar="N")] = 10


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """What `emovllm validate` measures on: by default what discovery has not seen."""

    data: Annotated[str, Parameter(help="sev-test (160 scenarios), sev-small, sev, or a file", metavar="FILE")] = (
        "sev-test"
    )
    style: Annotated[
        tuple[str, ...], REPEATED, Parameter(help="the elicitation, as for discover; repeatable", metavar="NAME|FILE")
    ] = ("fewshot",)
    plan: Annotated[Plan, FLAT] = field(default_factory=Plan)
    limit: Annotated[int | None, Gt(0), Parameter(help="use only the first N scenarios", metavar="N")] = None
    loading: Annotated[ModelOptions, FLAT] = field(default_factory=ModelOptions)
    batch_size: Annotated[int, Gt(0), Parameter(help="variants per forward", metavar="N")] = 128
    fresh: Annotated[bool, QUIET, Parameter(help="forget what was validated before")] = False
    progress: Annotated[bool, Parameter(parse=False)] = False
