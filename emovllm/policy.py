"""What an operator allows beyond what circuits do, and what holds for requests that do not say."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from emovllm.guards import GuardList
from emovllm.schedule import Schedule


def _schedule(value: Any) -> Schedule | None:
    """Raises: ValueError."""
    return value if value is None or isinstance(value, Schedule) else Schedule.read(value)


class Policy(BaseModel):
    """What the operator allows beyond what the circuits do.

    emotions: the names that requests may use, each as in a request, `anger` or `a/anger`; None for all.
    max_strength: the largest |weight x strength|, 1.0 being a circuit's recommendation, where that is below the
        circuit's own.
    default_emotion: for requests that name none: as `emotion` in a request.
    default_schedule: for requests with an emotion, a scope that ends with the reply, and no schedule of their own: as
        `emotion_schedule` in a request.
    guards: what is done to replies that read as a label above a bound (`emovllm.guards`), whatever requests ask for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    emotions: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    max_strength: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    default_emotion: str | dict[str, float] | None = None
    default_schedule: Annotated[
        Schedule | None,
        BeforeValidator(_schedule),
        PlainSerializer(lambda schedule: schedule and schedule.body()),
    ] = None
    guards: GuardList = ()
