"""How strong a request's emotion is at each token of its reply: `emotion_schedule`.

A schedule is a share of the request's strength, from 0 to 1, that depends on the token's index in the reply alone: so
chunked prefill, recomputation after preemption and rejected drafts change nothing. Token 0 is the one that the prompt's
last token writes. Needs neither torch nor vLLM.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# A longer reply than any; what never ends ends there.
NEVER = 2**40
MAX_POINTS = 64

_FORMS = (
    '{"hold": 20, "half_life": 40}, {"from": 8, "to": 64} (or one of the two), or points [[0, 1], [50, 0.3]] of a '
    "token and a share from 0 to 1"
)


class Schedule(NamedTuple):
    """The share at token i is the product of three: 1 from `start` to before `end` and 0 elsewhere; a half for each
    `half_life` tokens behind the last of the first `hold` ones (none with 0); and a line through `points`, (token,
    share), level before the first and after the last. Crosses processes with a request, as a list."""

    start: int = 0
    end: int = NEVER
    hold: int = 0
    half_life: float = 0
    points: tuple[tuple[int, float], ...] = ()

    @classmethod
    def read(cls, value: Any) -> Schedule:
        """A request's. Raises: ValueError, which says what it may be."""
        if isinstance(value, Mapping):
            return cls._of_fields(value)
        if isinstance(value, Sequence) and not isinstance(value, str):
            return cls(points=tuple(_points(value)))
        raise ValueError(f"must be one of {_FORMS}")

    @classmethod
    def carried(cls, value: Any) -> Schedule | None:
        """What crossed to another process."""
        if value is None or isinstance(value, cls):
            return value
        start, end, hold, half_life, points = value
        return cls(start, end, hold, half_life, tuple((token, share) for token, share in points))

    @classmethod
    def _of_fields(cls, fields: Mapping[str, Any]) -> Schedule:
        names = fields.keys()
        if names and names <= {"from", "to"}:
            start, end = _token("from", fields.get("from", 0)), _token("to", fields.get("to", NEVER))
            if start >= end:
                raise ValueError(f"is empty: it goes from token {start} to before token {end}")
            return cls(start=start, end=end)
        if "half_life" in names and names <= {"hold", "half_life"}:
            half_life = _number("half_life", fields["half_life"])
            if not half_life > 0:
                raise ValueError("must have a half_life above 0, in tokens")
            return cls(hold=_token("hold", fields.get("hold", 0)), half_life=half_life)
        raise ValueError(f"must be one of {_FORMS}")

    def shares(self, tokens: np.ndarray) -> np.ndarray:
        """The share at each of these tokens of the reply: int [n] to float32 [n]. What lies before the reply, below 0,
        is as its first token."""
        tokens = np.maximum(tokens, 0)
        shares = ((tokens >= self.start) & (tokens < self.end)).astype(np.float64)
        if self.half_life:
            shares *= np.exp2(-np.maximum(tokens - max(self.hold - 1, 0), 0) / self.half_life)
        if self.points:
            places, heights = zip(*self.points, strict=True)
            shares *= np.interp(tokens, places, heights)
        return shares.astype(np.float32)

    def body(self) -> dict[str, float] | list[list[float]]:
        """As a request may ask for it."""
        if self.points:
            return [[token, share] for token, share in self.points]
        if self.half_life:
            return {"hold": self.hold, "half_life": self.half_life}
        return {"from": self.start, **({"to": self.end} if self.end < NEVER else {})}


def _points(value: Iterable[Any]) -> Iterable[tuple[int, float]]:
    before = -1
    points = list(value)
    if not 1 <= len(points) <= MAX_POINTS:
        raise ValueError(f"must have from 1 to {MAX_POINTS} points, and has {len(points)}")
    for point in points:
        if not isinstance(point, Sequence) or isinstance(point, str) or len(point) != 2:
            raise ValueError(f"must be one of {_FORMS}")
        token, share = _token("a point's token", point[0]), _number("a point's share", point[1])
        if not 0 <= share <= 1:
            raise ValueError(f"must have shares from 0 to 1, got {share:g}; emotion_strength is what they are of")
        if token <= before:
            raise ValueError("must have points in the order of their tokens, each of another one")
        before = token
        yield token, share


def _token(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= NEVER:
        raise ValueError(f"must have a number of tokens, 0 or more, as {name}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"must have a finite number as {name}")
    return float(value)
