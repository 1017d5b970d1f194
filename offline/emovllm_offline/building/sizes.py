"""On how much the stages of a build work, how fast the model is, and how much there is to work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Effort = Literal["quick", "normal", "thorough"]
Importance = Literal["exact", "gradient"]
Stage = Literal["elicit", "prompt", "discover", "refine", "probe", "calibrate", "again", "evaluate", "write"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True, slots=True)
class Sizes:
    """On how much each stage works. Scenarios have three events each; 0 leaves a stage out.

    tried: scenarios on which each of `styles` is tried; prompted: on which the style that is obeyed is asked further;
    found: of discovery, with `importance` on `neutral` prompts; learnt: messages of the refinement, `epochs` times;
    texts: of the probe; chosen: messages of the calibration, at `lambdas`; again: rounds with the model's own replies
    under the circuit; tested: messages of the evaluation.
    """

    tried: int
    styles: int
    prompted: int
    found: int
    importance: Importance
    neutral: int
    learnt: int
    epochs: int
    texts: int
    chosen: int
    lambdas: tuple[float, ...]
    again: int
    tested: int


_USUAL = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
EFFORTS: dict[Effort, Sizes] = {
    "quick": Sizes(2, 2, 8, 10, "gradient", 2, 80, 1, 480, 8, (0.75, 1.0, 1.5, 2.0), 0, 12),
    "normal": Sizes(3, 3, 24, 40, "exact", 8, 168, 3, 1500, 12, _USUAL, 0, 24),
    "thorough": Sizes(6, 3, 60, 120, "exact", 8, 168, 4, 1500, 40, (*_USUAL, 2.5, 3.0), 1, 80),
}
# Below which a stage says nothing.
LEAST = Sizes(1, 1, 0, 5, "gradient", 1, 0, 1, 0, 4, (0.75, 1.0, 1.5), 0, 6)


def effort_of(given: Effort | None, minutes: float | None) -> Effort:
    """How much is done at most: where it is not given `normal`, or, in so many minutes, `thorough`."""
    return given or ("normal" if minutes is None else "thorough")


@dataclass(frozen=True, slots=True)
class Speed:
    """What the model costs on this machine, in seconds: to load it, a token of a forward, a step in which `BATCH`
    replies get a token each. layers, hidden: of the model."""

    load: float
    token: float
    step: float
    layers: int
    hidden: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What there is, and how long it is.

    prompts: by style that asks, the tokens of its prompt, in the order in which they are tried; replies: of each, how
    many an event and an emotion have. style, forced: the style of a discovery that nothing was elicited for, as many
    tokens of its prompt, replies that the model reads as its own included. message: tokens of a neutral prompt; reply:
    of a reply that is learnt from. learn, choose, test: scenarios; written: messages with written replies to learn
    from, and held: to measure by; texts: labelled ones. judging: seconds for a text, of each judge.
    """

    emotions: int
    prompts: Mapping[str, int]
    replies: Mapping[str, int]
    forced: int
    message: int
    reply: int
    learn: int
    choose: int
    test: int
    written: int
    held: int
    texts: int
    again: bool = True  # whether the replies of another round can be judged
    judging: tuple[float, ...] = (0.0,)
