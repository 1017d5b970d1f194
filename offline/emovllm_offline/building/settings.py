"""What `emovllm build` is asked for, besides the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Gt
from cyclopts import Parameter

from emovllm.options import COMMAS, FLAT, QUIET, Options
from emovllm_offline.building.sizes import Effort
from emovllm_offline.commands.judging import JUDGE, JudgeOptions
from emovllm_offline.model.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class BuildSettings(Options):
    """minutes: what the estimate is to stay within, and what is left of it what comes later. effort: how much is done
    at most. emotions: a style with others than the six. data, replies, probe_data: the user's own. judge: the first
    chooses, all measure, and what is said is by the last. work: folder of what the stages left, else `OUT.work`."""

    minutes: Annotated[
        float | None,
        Gt(0),
        Parameter(help="about how long it may take: what is least missed is shortened first", metavar="N"),
    ] = None
    effort: Annotated[
        Effort | None,
        Parameter(help="how much is done at most (default: normal; with --minutes, thorough)", show_default=False),
    ] = None
    emotions: Annotated[
        str | None,
        Parameter(help="a style with other emotions, such as twenty (default: the six)", metavar="NAME|FILE"),
    ] = None
    data: Annotated[
        str | None,
        Parameter(
            help="your own scenarios, in any language: learnt from, chosen by and measured on in parts (default: SEV)",
            metavar="FILE",
        ),
    ] = None
    replies: Annotated[
        str | None,
        Parameter(
            help="written replies to learn from where the model does not obey (default: the packaged ones, with SEV)",
            metavar="FILE",
        ),
    ] = None
    probe_data: Annotated[
        Path | None, Parameter(help="labelled texts for the probe (default: the replies)", metavar="FILE")
    ] = None
    judge: Annotated[
        tuple[str, ...],
        COMMAS,
        JUDGE,
        Parameter(
            help=f"{JUDGE.help}; of several the first chooses, all measure, and the last one's measure is told",
            metavar="NAME[,NAME...]",
        ),
    ] = ("local",)
    judging: Annotated[JudgeOptions, FLAT] = field(default_factory=JudgeOptions)
    engine_args: Annotated[
        str,
        QUIET,
        Parameter(
            help="further arguments of vllm serve, in one string, for the engines that are started",
            metavar="ARGS",
            allow_leading_hyphen=True,
        ),
    ] = ""
    loading: Annotated[ModelOptions, FLAT] = field(default_factory=ModelOptions)
    plan: Annotated[bool, Parameter(negative=(), help="only tell what would be done, and how long it takes")] = False
    work: Annotated[
        Path | None, Parameter(help="folder of what the stages leave (default: OUT.work)", metavar="DIR")
    ] = None
    fresh: Annotated[bool, QUIET, Parameter(help="forget what the folder holds")] = False
