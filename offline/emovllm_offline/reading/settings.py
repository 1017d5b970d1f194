"""How texts are read, and how probes are fitted to what was read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Gt, Interval
from cyclopts import Parameter

from emovllm.errors import OptionError
from emovllm.options import COMMAS, QUIET, Options

# Tokens of a forward, padding included: on two cores more of them are no faster.
BATCH_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class Reading(Options):
    """Which states of a text are read. batch_tokens: padding included."""

    pooling: Annotated[
        Literal["last", "mean"], Parameter(help="the state at a text's last token, or the mean over its own tokens")
    ] = "last"
    chat: Annotated[
        bool,
        Parameter(negative=(), help="give each text as a user's message, and read the state at which the reply begins"),
    ] = False
    max_tokens: Annotated[int, Gt(0), Parameter(help="leave out texts that are longer", metavar="N")] = 512
    batch_tokens: Annotated[int, Gt(0), Parameter(help="tokens of a forward", metavar="N")] = BATCH_TOKENS

    def __post_init__(self) -> None:
        """Raises: OptionError."""
        super().__post_init__()
        if self.chat and self.pooling == "mean":
            raise OptionError(
                "--chat reads the one state at which the reply begins, of which there is no mean: leave out --pooling"
            )


@dataclass(frozen=True, kw_only=True)
class Fitting(Options):
    """How probes are fitted. penalties: of the mean cross-entropy, halves of them times the squared weights."""

    penalties: Annotated[
        tuple[Annotated[float, Gt(0)], ...],
        COMMAS,
        Parameter(
            help="L2 strengths, tried from the strongest on until the dev loss rises, layer by layer", metavar="X,..."
        ),
    ] = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    weights: Annotated[
        Literal["balanced", "none"],
        Parameter(help="whether rare labels count as much as frequent ones, or each text as much as any other"),
    ] = "balanced"
    held_out: Annotated[
        float, Interval(ge=0.02, le=0.4), Parameter(help="share of --data for --dev, and for --test, where not given")
    ] = 0.1
    seed: Annotated[int, Ge(0), Parameter(help="of held-out parts, shuffled labels and bootstrap", metavar="N")] = 0


@dataclass(frozen=True, kw_only=True)
class Work(Options):
    """Where states are kept, so that an interrupted run goes on."""

    work: Annotated[
        Path | None,
        Parameter(
            help="folder for the states; an interrupted run goes on, and another fit reads them (default: OUT.work)",
            metavar="DIR",
        ),
    ] = None
    fresh: Annotated[bool, QUIET, Parameter(help="forget what was read before")] = False


@dataclass(frozen=True, kw_only=True)
class Measuring(Options):
    """How a probe that is there is measured. max_tokens: of a text, and of what stands around it."""

    limit: Annotated[
        int | None, Gt(0), Parameter(help="about N texts, with each label's share as it is", metavar="N")
    ] = None
    max_tokens: Annotated[int, Gt(0), Parameter(help="leave out texts that are longer", metavar="N")] = 512
    batch_tokens: Annotated[int, Gt(0), Parameter(help="tokens of a forward", metavar="N")] = BATCH_TOKENS
    seed: Annotated[int, Ge(0), Parameter(help="of the draw and of the bootstrap", metavar="N")] = 0
    work: Annotated[
        Path | None, Parameter(help="folder from which an interrupted run goes on (default: OUT.work)", metavar="DIR")
    ] = None
    fresh: Annotated[bool, QUIET, Parameter(help="forget what was measured before")] = False


# How replies are made that are read token by token: without a circuit; with its emotion at the prompt's last token, or
# over the reply; with it over the reply's first tokens alone.
Kind = Literal["unsteered", "prompt_last", "generation", "off-after"]


@dataclass(frozen=True, kw_only=True)
class Persisting(Options):
    """How replies are made, and at which of their tokens what is read in them is told.

    tokens, off_after: those that a reply of `max_tokens` has. emotions: none for all that circuit and probe have in
    common. strength: 1.0 is the circuit's recommended one.
    """

    conditions: Annotated[
        tuple[Kind, ...], COMMAS, Parameter(help="how the replies are made; all but unsteered need a circuit")
    ] = get_args(Kind)
    off_after: Annotated[
        tuple[Annotated[int, Gt(0)], ...],
        COMMAS,
        Parameter(help="the emotion is on for so many tokens alone, in off-after", metavar="N,..."),
    ] = (20,)
    max_tokens: Annotated[int, Gt(0), Parameter(help="of each reply, which goes on so long", metavar="N")] = 400
    tokens: Annotated[
        tuple[Annotated[int, Gt(0)], ...],
        COMMAS,
        Parameter(help="those that the tables tell of, as far as --max-tokens goes", metavar="N,..."),
    ] = (1, 10, 50, 100, 200, 400)
    emotions: Annotated[
        tuple[str, ...],
        COMMAS,
        Parameter(help="of the circuit (default: all that the probe knows)", metavar="NAME,...", show_default=False),
    ] = ()
    strength: Annotated[float, Gt(0), Parameter(help="of the emotions, as a request's", metavar="X")] = 1.0
    limit: Annotated[int, Gt(0), Parameter(help="about N messages, as many of each label", metavar="N")] = 60
    temperature: Annotated[float, Ge(0), Parameter(help="0 for greedy replies", metavar="X")] = 0.0
    batch: Annotated[int, Gt(0), Parameter(help="replies at a time", metavar="N")] = 32
    seed: Annotated[int, Ge(0), Parameter(help="of the draw, of sampling and of the bootstrap", metavar="N")] = 0
    work: Annotated[
        Path | None, Parameter(help="folder from which an interrupted run goes on (default: OUT.work)", metavar="DIR")
    ] = None
    fresh: Annotated[bool, QUIET, Parameter(help="forget what was read before")] = False

    def __post_init__(self) -> None:
        """Raises: OptionError."""
        super().__post_init__()
        if min(self.tokens) > self.max_tokens:
            raise OptionError(f"--tokens {min(self.tokens)}: replies have {self.max_tokens}, see --max-tokens")
