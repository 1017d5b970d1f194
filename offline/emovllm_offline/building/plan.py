"""What `emovllm build` does, on how much, and what it leaves out for the time: nothing is run here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from emovllm.errors import BuildError
from emovllm_offline.building.costs import Planned, estimates
from emovllm_offline.building.sizes import EFFORTS, LEAST, Counts, Effort, Sizes, Speed, Stage, effort_of

# What is shortened, what is least missed first; the stage that it belongs to, and how it is told.
FIELDS: dict[str, tuple[Stage, str]] = {
    "again": ("again", "rounds with the model's own replies under the circuit"),
    "importance": ("discover", "importance"),
    "neutral": ("discover", "neutral prompts for importance"),
    "tested": ("evaluate", "messages of the evaluation"),
    "chosen": ("calibrate", "messages of the calibration"),
    "lambdas": ("calibrate", "strengths tried"),
    "prompted": ("prompt", "scenarios that the model is asked further"),
    "epochs": ("refine", "passes of the refinement"),
    "found": ("discover", "scenarios of the discovery"),
    "styles": ("elicit", "styles tried"),
    "tried": ("elicit", "scenarios on which styles are tried"),
    "texts": ("probe", "texts of the probe"),
    "learnt": ("refine", "messages of the refinement"),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """left_out: what was shortened or left out for the time, a sentence each."""

    sizes: Sizes
    stages: tuple[Planned, ...]
    left_out: tuple[str, ...]

    @property
    def minutes(self) -> float:
        return sum(planned.minutes for planned in self.stages)

    def of(self, stage: Stage) -> Planned | None:
        """None where the stage is left out."""
        return next((planned for planned in self.stages if planned.stage == stage), None)


def make_plan(effort: Effort | None, minutes: float | None, counts: Counts, speed: Speed) -> Plan:
    """effort: how much is done at most (`effort_of`). minutes: what the estimate is to stay within; what is least
    missed goes first.

    Raises: BuildError where the least that says something takes longer.
    """
    sizes = EFFORTS[effort_of(effort, minutes)]
    plan = shorten(sizes, minutes, counts, speed)
    if minutes is not None and plan.minutes > minutes:
        raise BuildError(
            f"--minutes {minutes:g}: on this machine the least that says something takes about {plan.minutes:.0f} "
            "minutes: allow as many, or take a smaller model or a GPU. If the machine was busy while the model was "
            "timed, it takes less: try again when it is not"
        )
    return plan


def shorten(
    sizes: Sizes,
    minutes: float | None,
    counts: Counts,
    speed: Speed,
    begun: Collection[Stage] = (),
    slower: float = 1.0,
) -> Plan:
    """The plan of these sizes, shortened until it fits, or to the least.

    minutes: for what is not `begun`, whose sizes stay. slower: how many times the estimates the work took so far.
    """
    wanted, floors = sizes, (EFFORTS["normal"], EFFORTS["quick"], LEAST)
    for floor in floors:
        for field, (stage, _) in FIELDS.items():
            if minutes is None or slower * _left(sizes, counts, speed, begun) <= minutes:
                break
            if stage not in begun:
                sizes = replace(sizes, **{field: _lesser(getattr(sizes, field), getattr(floor, field))})
    return Plan(sizes, tuple(estimates(sizes, counts, speed)), told(wanted, sizes))


def _left(sizes: Sizes, counts: Counts, speed: Speed, begun: Collection[Stage]) -> float:
    return sum(planned.minutes for planned in estimates(sizes, counts, speed) if planned.stage not in begun)


def _lesser(one: Any, other: Any) -> Any:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return min(one, other, key=len)
    if isinstance(one, str):
        return "gradient" if "gradient" in (one, other) else one
    return min(one, other)


def told(wanted: Sizes, sizes: Sizes) -> tuple[str, ...]:
    """What was shortened or left out, a sentence each."""
    said = []
    for field, (_, name) in FIELDS.items():
        before, after = getattr(wanted, field), getattr(sizes, field)
        if before != after:
            said.append(f"{name}: {_short(after)} instead of {_short(before)}")
    return tuple(said)


def _short(value: object) -> str:
    return str(len(value)) if isinstance(value, tuple) else str(value)
