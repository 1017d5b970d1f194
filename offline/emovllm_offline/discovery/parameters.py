"""What shapes a circuit besides the model: its parameters, and how, and on what, it is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Interval
from cyclopts import Parameter

from emovllm.options import FLAT, QUIET, REPEATED, Options
from emovllm_offline.model.options import ModelOptions

# In the order in which they are measured.
Stage = Literal["activations", "heads", "importance", "circuit"]
# While the model is to write in an emotion; while it reads emotional words as its user's message.
Extraction = Literal["generation", "comprehension"]

ALPHAS = (0.1, 0.3, 0.5, 0.7)
# Late layers whose directions agree with one another: layers 21..25 of 28 in the paper.
BAND = (0.75, 0.9)
PER_SUBLAYER = 10
NEURON_SHARE = 0.7
LEAST_NEURONS = 4
LEAST_HEADS = 2
CAP = 0.4


@dataclass(frozen=True, kw_only=True)
class Parameters(Options):
    """The paper's values by default (method of arXiv 2510.11328).

    Of the measurement: `extract` (in which states the emotions are compared: while the model is to write in them, or
    while it reads), `importance` (exact perturbation, or its first-order form by one backward pass), `alphas`,
    `band` (the reference layers, relative depths), `importance_prompts`, `head_metric` (on the residual, as the
    paper's text says, or after the norm that follows, as its authors measured), `experts` (whether neurons of routed
    experts are among those to choose from).
    Of the assembly: `per_sublayer` (the budget is this x 2L), `neuron_share`, `least_neurons` and `least_heads` per
    layer, `cap` (the most that a layer gets beyond its least, as a share of the kind's budget), `scope`, `directions`
    (whether the circuit holds the directions that evaluations steer with).
    """

    extract: Annotated[
        Extraction,
        Parameter(
            help="states while the model is to write in an emotion, or while it reads replies as its user's messages"
        ),
    ] = "generation"
    importance: Annotated[Literal["exact", "gradient"], Parameter(help="perturbation, or one backward pass")] = "exact"
    alphas: Annotated[tuple[float, ...], Parameter(parse=False)] = ALPHAS
    band: Annotated[
        tuple[float, float], Parameter(help="relative depths of the reference layers", metavar="FROM TO")
    ] = BAND
    importance_prompts: Annotated[int, Gt(0), Parameter(help="neutral prompts for importance", metavar="N")] = 8
    head_metric: Annotated[Literal["residual", "normed"], Parameter(help="state that heads are scored on")] = "residual"
    experts: Annotated[
        bool,
        Parameter(negative=(), help="choose among the neurons of routed experts too, as constant vectors"),
    ] = False
    per_sublayer: Annotated[
        float, Gt(0), Parameter(name="--budget", help="units per sublayer on average", metavar="N")
    ] = PER_SUBLAYER
    neuron_share: Annotated[
        float, Interval(ge=0, le=1), Parameter(help="the neurons' share of the budget", metavar="X")
    ] = NEURON_SHARE
    least_neurons: Annotated[int, Parameter(help="neurons that every layer gets", metavar="N")] = LEAST_NEURONS
    least_heads: Annotated[int, Parameter(help="heads that every layer gets", metavar="N")] = LEAST_HEADS
    cap: Annotated[float, Parameter(help="most of a kind's budget beyond that for one layer", metavar="X")] = CAP
    scope: Annotated[Literal["generation", "prompt_last", "all"], Parameter(help="positions of the injection")] = (
        "generation"
    )
    directions: Annotated[
        bool,
        QUIET,
        Parameter(
            negative="--no-directions",
            help="whether the circuit holds the directions, which only the steering baseline of evaluations needs",
        ),
    ] = True


@dataclass(frozen=True, kw_only=True)
class Measurement(Options):
    """How the forward passes are made. work: folder for what was measured, where an interrupted run goes on."""

    batch_size: Annotated[int, Gt(0), Parameter(help="sequences per forward", metavar="N")] = 32
    seed: Annotated[int, Parameter(help="chooses the neutral prompts", metavar="N")] = 0
    work: Annotated[
        Path | None,
        Parameter(help="folder for what was measured; an interrupted run goes on (default: OUT.work)", metavar="DIR"),
    ] = None
    progress: Annotated[bool, Parameter(parse=False)] = False


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """What `emovllm discover` measures on, and where it stops.

    recommended, maximal: lambdas as NUMBER, for all emotions, or as EMOTION=NUMBER. replies: the folder of `emovllm
    elicit`, whose judge decides what is measured; everything by default. stage: stop after this one, and let `circuit`
    measure nothing.
    """

    data: Annotated[
        str, Parameter(help="sev-small (40 scenarios), sev-train (120), sev (160), sev-test, or a file", metavar="FILE")
    ] = "sev-small"
    style: Annotated[
        tuple[str, ...],
        REPEATED,
        Parameter(
            help="paper, role, replies, fewshot, twenty or a JSON file: the elicitation; repeatable",
            metavar="NAME|FILE",
        ),
    ] = ("fewshot",)
    recommended: Annotated[
        tuple[str, ...],
        QUIET,
        Parameter(help="lambda that strength 1 stands for, of one emotion or all (default: 1)", metavar="[EMOTION=]X"),
    ] = ()
    maximal: Annotated[
        tuple[str, ...],
        QUIET,
        Parameter(help="largest lambda a request may reach (default: twice the recommended)", metavar="[EMOTION=]X"),
    ] = ()
    limit: Annotated[int | None, Gt(0), Parameter(help="use only the first N scenarios", metavar="N")] = None
    loading: Annotated[ModelOptions, FLAT] = field(default_factory=ModelOptions)
    measurement: Annotated[Measurement, FLAT] = field(default_factory=Measurement)
    replies: Annotated[
        Path | None, Parameter(help="use only what `emovllm elicit` found accepted in every emotion", metavar="DIR")
    ] = None
    stage: Annotated[
        Stage | None, Parameter(help="stop after this stage; `circuit` only assembles what was measured")
    ] = None
    fresh: Annotated[bool, QUIET, Parameter(help="forget what was measured before")] = False
