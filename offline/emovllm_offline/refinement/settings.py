"""How a circuit is fitted, and how the model's own replies are sampled, besides what is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Interval
from cyclopts import Parameter

from emovllm.options import FLAT, QUIET, STRENGTHS, Options
from emovllm_offline.model.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class Training(Options):
    """How the deltas are fitted.

    start: lambda at which the discovered deltas enter. learning_rate: of Adam, in units of the root mean square of a
    site's discovered deltas; it falls linearly to zero. batch: messages a step, each with all its replies. held_out:
    the messages that the replies mark so, or where there are none one in so many, are not learnt from, but measure each
    epoch; the best epoch is kept. control: what `controls` fits in place of the circuit. anchor: from 0 to
    1, the share of the plain model's own word in the loss: at every token of a reply the steered model is to predict
    what the plain one does when its prompt asks for the emotion, which keeps replies fluent.
    """

    epochs: Annotated[int, Gt(0), Parameter(help="times that every message is learnt from", metavar="N")] = 4
    batch: Annotated[int, Gt(0), Parameter(help="messages a step, each in all emotions", metavar="N")] = 4
    learning_rate: Annotated[float, Gt(0), Parameter(help="of Adam, relative to the deltas' size", metavar="X")] = 0.1
    start: Annotated[float, Gt(0), Parameter(help="lambda at which the discovered deltas enter", metavar="X")] = 1.0
    held_out: Annotated[
        int,
        Gt(0),
        Parameter(
            help="where the replies mark none, one message in N is not learnt from, but measures each epoch",
            metavar="N",
        ),
    ] = 10
    anchor: Annotated[
        float,
        Interval(ge=0, le=1),
        Parameter(help="0 to 1: how much the plain model, asked for the emotion, decides, for fluency", metavar="X"),
    ] = 0.0
    control: Annotated[
        Literal["random-start", "random-units", "residual"] | None,
        Parameter(
            help="fit something else, to compare with: the units from random deltas, as many random units in each "
            "layer, or a vector of the residual stream for each layer",
            show_default=False,
        ),
    ] = None
    seed: Annotated[int, Parameter(help="of the order of the messages, and of what is random", metavar="N")] = 0


@dataclass(frozen=True, kw_only=True)
class RefineSettings(Options):
    """What `emovllm refine` learns from, and where. work: folder of the checkpoint, `OUT.work` by default; an
    interrupted run goes on there, unless `fresh`.
    """

    replies: Annotated[
        str,
        Parameter(
            help="JSON lines with `id`, `user`, `replies` by emotion (default: replies, written for this)",
            metavar="FILE",
            show_default=False,
        ),
    ] = "replies"
    limit: Annotated[int | None, Gt(0), Parameter(help="use only the first N messages", metavar="N")] = None
    anchor_style: Annotated[
        str, Parameter(help="how the plain model is asked for the emotion", metavar="NAME|FILE")
    ] = "fewshot"
    loading: Annotated[ModelOptions, FLAT] = field(default_factory=ModelOptions)
    work: Annotated[Path | None, Parameter(help="folder of the checkpoint (default: OUT.work)", metavar="DIR")] = None
    fresh: Annotated[bool, QUIET, Parameter(help="start anew, whatever the checkpoint holds")] = False


@dataclass(frozen=True, kw_only=True)
class Sampling(Options):
    """How the model is made to reply. strengths: as requests have them; samples: of each message, emotion, strength."""

    strengths: Annotated[tuple[float, ...], STRENGTHS, Parameter(help="of the requests")] = (0.7, 0.9)
    samples: Annotated[int, Gt(0), Parameter(help="of each message, emotion and strength", metavar="N")] = 2
    temperature: Annotated[float, Gt(0), Parameter(help="of the samples", metavar="X")] = 0.7
    max_tokens: Annotated[int, Gt(0), Parameter(help="longer replies are dropped", metavar="N")] = 60


@dataclass(frozen=True, kw_only=True)
class Sifting(Options):
    """Which of its replies are learnt from, besides what all of them must be. None: whatever."""

    named_within: Annotated[
        int | None,
        Gt(0),
        Parameter(help="something of the message must be named in a reply's first N words", metavar="N"),
    ] = None
    alike: Annotated[
        int | None,
        Gt(0),
        Parameter(help="of its own replies of an emotion, so many may begin with the same three words", metavar="N"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class OwnRepliesSettings(Options):
    """What `emovllm own-replies` replies to, and where. work: folder of what an interrupted run goes on from,
    `OUT.work` by default.
    """

    replies: Annotated[
        str,
        Parameter(help="the messages, with the replies to keep where none of its own is good", metavar="FILE"),
    ] = "replies"
    prompt_style: Annotated[str, Parameter(help="how the plain model is asked for an emotion", metavar="NAME|FILE")] = (
        "fewshot"
    )
    limit: Annotated[int | None, Gt(0), Parameter(help="use only the first N messages", metavar="N")] = None
    lexicon: Annotated[
        Path | None,
        Parameter(help="word list of the lexicon judge (default: the packaged one)", metavar="FILE"),
    ] = None
    work: Annotated[
        Path | None, Parameter(help="folder of what was sampled and chosen (default: OUT.work)", metavar="DIR")
    ] = None
    sifting: Annotated[Sifting, FLAT] = field(default_factory=Sifting)
    fresh: Annotated[bool, QUIET, Parameter(help="start anew, whatever the folder holds")] = False
