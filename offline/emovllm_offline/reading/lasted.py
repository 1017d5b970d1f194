"""What is known of how long emotions can be read: `persist.json`, made of samples of replies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from emovllm.spec import Frozen
from emovllm_offline.intervals import times_drawn
from emovllm_offline.reading.persistence import Intervals, Sample, intervals, longest
from emovllm_offline.reading.replies import Way
from emovllm_offline.reading.results import Figure
from emovllm_offline.storage.results_file import ResultsFile

# Of the replies, how many lie below the band, and below its upper end.
BAND = (0.1, 0.9)
_DECIMALS = 5


class AtToken(Frozen):
    """The opening's probability in the state that wrote a token (from 1). median, low, high: over replies, BAND of
    them. mean, control, excess: with 95% intervals over groups. going: how many replies had not ended by themselves
    (nor their controls), and their mean and its control; None of none."""

    token: int
    median: float
    low: float
    high: float
    mean: Figure
    control: Figure
    excess: Figure
    going: int
    going_mean: float | None
    going_control: float | None


class HalfLife(Frozen):
    """tokens: after which the excess is half of what it was; low, high: the 95% interval. None for not within
    `longest`."""

    tokens: int | None
    low: int | None
    high: int | None
    longest: int

    def __str__(self) -> str:
        low, high = (f"over {self.longest}" if bound is None else str(bound) for bound in (self.low, self.high))
        return f"{f'not within {self.longest} tokens' if self.tokens is None else self.tokens} [{low}, {high}]"


class OfOpening(Frozen):
    """The replies whose opening has a label. means, controls: at the tokens that tables tell of."""

    label: str
    replies: int
    means: tuple[float, ...]
    controls: tuple[float, ...]


class Curve(Frozen):
    """What a figure shows: a value for each token."""

    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    control: tuple[float, ...]


class Lasted(Frozen):
    """One condition. begin: the token from which on the emotion is left to itself. half_life: from there; None where
    the probability is not above its control there, by its interval. ended: the share of replies that would have ended
    before the last token."""

    name: str
    replies: int
    groups: int
    off_after: int | None
    begin: int
    ended: float
    tokens: tuple[AtToken, ...]
    at_begin: Figure
    half_life: HalfLife | None
    by_label: tuple[OfOpening, ...]
    curve: Curve


class Persistence(ResultsFile):
    """All of `persist.json`. layer: the one that is read, of `of_layers`. length: tokens of each reply.
    messages: how many have each label."""

    FILE = "persist.json"

    format: Literal["emovllm-probe-persist"] = "emovllm-probe-persist"
    format_version: Literal[1] = 1
    model: str
    digest: str
    circuit: str | None
    layer: int
    of_layers: int
    labels: tuple[str, ...]
    length: int
    messages: dict[str, int]
    groups: int
    conditions: tuple[Lasted, ...]
    about: dict[str, Any]

    def of(self, name: str) -> Lasted:
        return next(one for one in self.conditions if one.name == name)


def conclude(
    way: Way,
    sample: Sample,
    ends: np.ndarray,
    groups: Sequence[str],
    labels: Sequence[str],
    tokens: Sequence[int],
    seed: int,
) -> Lasted:
    """ends: of how many tokens each reply of the sample would have been. groups: of all messages. labels: the probe's.
    tokens: those that tables tell of, from 1."""
    found = intervals(sample, times_drawn(groups, seed), way.begin)
    median, low, high = np.quantile(sample.values, (0.5, *BAND), axis=0)
    length = sample.values.shape[1]
    at_begin = _figure(found.excess[:, way.begin - 1])
    return Lasted(
        name=way.name,
        replies=len(sample.replies),
        groups=len({groups[place] for place in sample.replies.tolist()}),
        off_after=way.off_after,
        begin=way.begin,
        ended=float((ends < length).mean()),
        tokens=tuple(_at(sample, found, (median, low, high), token) for token in tokens),
        at_begin=at_begin,
        half_life=_half_life(found, length, way.begin) if at_begin.low > 0 else None,
        by_label=tuple(
            _of_opening(sample, label, labels[label], tokens) for label in np.unique(sample.opening).tolist()
        ),
        curve=Curve(
            **{
                name: tuple(np.round(values, _DECIMALS).tolist())
                for name, values in (
                    *(("median", median), ("low", low), ("high", high)),
                    *(("mean", found.own[0]), ("control", found.control[0])),
                )
            }
        ),
    )


def _at(sample: Sample, found: Intervals, band: tuple[np.ndarray, np.ndarray, np.ndarray], token: int) -> AtToken:
    median, low, high = (float(one[token - 1]) for one in band)
    going = sample.going(token)
    return AtToken(
        token=token,
        median=median,
        low=low,
        high=high,
        mean=_figure(found.own[:, token - 1]),
        control=_figure(found.control[:, token - 1]),
        excess=_figure(found.excess[:, token - 1]),
        going=0 if going is None else going[0],
        going_mean=None if going is None else going[1],
        going_control=None if going is None else going[2],
    )


def _of_opening(sample: Sample, place: int, label: str, tokens: Sequence[int]) -> OfOpening:
    curves = sample.curves(np.ones((1, sample.messages)), [place])
    at = np.array(tokens) - 1
    return OfOpening(
        label=label,
        replies=int((sample.opening == place).sum()),
        means=tuple(curves.own[0, at].tolist()),
        controls=tuple(curves.control[0, at].tolist()),
    )


def _half_life(found: Intervals, length: int, begin: int) -> HalfLife:
    tokens, low, high = (int(life) if math.isfinite(life) else None for life in found.half_life)
    return HalfLife(tokens=tokens, low=low, high=high, longest=longest(length, begin))


def _figure(bounds: np.ndarray) -> Figure:
    value, low, high = map(float, bounds)
    return Figure(value=value, low=low, high=high)
