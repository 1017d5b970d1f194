"""How long an emotion can be read: its probability over a reply's tokens beside its control, and its half-life."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

# Whether what is left is half is asked of the mean over so many tokens: single ones jump.
WINDOW = 10


class Curves(NamedTuple):
    """Means over replies, and what they would be without the emotion: [weightings, tokens]."""

    own: np.ndarray
    control: np.ndarray

    @property
    def excess(self) -> np.ndarray:
        return self.own - self.control


class Sample(Protocol):
    """The replies of one condition. opening: the place of each one's label, [replies]. values: the probability of that
    label, [replies, tokens]. replies: their places among the messages. messages: how many there are."""

    opening: np.ndarray
    values: np.ndarray
    replies: np.ndarray
    messages: int

    def curves(self, weights: np.ndarray, labels: Sequence[int] | None = None) -> Curves:
        """weights: of the messages, [weightings, messages]. labels: of these openings alone; None for all."""

    def going(self, token: int, labels: Sequence[int] | None = None) -> tuple[int, float, float] | None:
        """How many replies with these openings had not ended at a token (from 1), and their mean and its control there;
        None where there are none, or no control."""


class Beside:
    """Replies with an emotion, whose control is the plain reply to the same message."""

    def __init__(self, asked: np.ndarray, plain: np.ndarray, label: np.ndarray, going: np.ndarray) -> None:
        """asked, plain: the probability of the emotion, [messages, tokens]. label: its place, [messages].
        going: whether neither of the two replies had ended, [messages, tokens]."""
        self.opening, self.values, self._plain, self._going = label, asked, plain, going
        self.messages = len(label)
        self.replies = np.arange(self.messages)

    def curves(self, weights: np.ndarray, labels: Sequence[int] | None = None) -> Curves:
        of = _chosen(self.opening, labels)
        share = weights[:, of]
        with np.errstate(invalid="ignore"):
            share = share / share.sum(1, keepdims=True)
        return Curves(share @ self.values[of], share @ self._plain[of])

    def going(self, token: int, labels: Sequence[int] | None = None) -> tuple[int, float, float] | None:
        of = _chosen(self.opening, labels) & self._going[:, token - 1]
        if not of.any():
            return None
        return int(of.sum()), float(self.values[of, token - 1].mean()), float(self._plain[of, token - 1].mean())


class AmongOthers:
    """Plain replies to messages that have an emotion, whose control is what replies to messages with other labels read
    as."""

    def __init__(self, probability: np.ndarray, label: np.ndarray, opens: np.ndarray, going: np.ndarray) -> None:
        """probability: [messages, tokens, labels]. label: of the messages, [messages]. opens: whether that is an
        emotion, [messages]. going: whether the reply had not ended, [messages, tokens]."""
        self._probability, self._label, self._opens, self._going = probability, label, opens, going
        self.messages = len(label)
        self.replies = np.flatnonzero(opens)
        self.opening = label[opens]
        self.values = probability[self.replies, :, self.opening]

    def curves(self, weights: np.ndarray, labels: Sequence[int] | None = None) -> Curves:
        chosen = self._opens & _chosen(self._label, labels)
        return self._curves(weights, chosen, slice(None))

    def _curves(self, weights: np.ndarray, chosen: np.ndarray, tokens: slice) -> Curves:
        shape = (len(weights), self._probability[:, tokens].shape[1])
        own, control = np.zeros(shape), np.zeros(shape)
        for label in np.unique(self._label[chosen]):
            its, others = chosen & (self._label == label), self._label != label
            read = self._probability[:, tokens, label]
            own += weights[:, its] @ read[its]
            # Without any other message in a resample it has no control, and is not a number.
            with np.errstate(invalid="ignore", divide="ignore"):
                among = weights[:, others] @ read[others] / weights[:, others].sum(1, keepdims=True)
            control += weights[:, its].sum(1, keepdims=True) * among
        total = weights[:, chosen].sum(1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            return Curves(own / total, control / total)

    def going(self, token: int, labels: Sequence[int] | None = None) -> tuple[int, float, float] | None:
        chosen = self._opens & _chosen(self._label, labels) & self._going[:, token - 1]
        if not chosen.any():
            return None
        weights = self._going[None, :, token - 1].astype(np.float64)
        own, control = self._curves(weights, chosen, slice(token - 1, token))
        if not np.isfinite(control).all():
            return None
        return int(chosen.sum()), float(own[0, 0]), float(control[0, 0])


def _chosen(label: np.ndarray, labels: Sequence[int] | None) -> np.ndarray:
    return np.ones(len(label), bool) if labels is None else np.isin(label, labels)


def half_lives(excess: np.ndarray, begin: int) -> np.ndarray:
    """After how many tokens of those after `begin` (from 1) the excess is half of what it is there, in the mean over
    the WINDOW from then on: [curves, tokens] to [curves]. Infinite where it is not, not a number where there is no
    excess at `begin`."""
    window = min(WINDOW, excess.shape[1] - begin)
    first = excess[:, begin - 1]
    found = np.where(first > 0, np.inf, np.nan)
    if window < 1:
        return found
    rolling = np.lib.stride_tricks.sliding_window_view(excess[:, begin:], window, axis=1).mean(-1)
    fallen = rolling <= first[:, None] / 2
    return np.where((first > 0) & fallen.any(1), fallen.argmax(1) + 1.0, found)


def longest(tokens: int, begin: int) -> int:
    """The longest half-life that so many tokens can show."""
    return max(tokens - begin - min(WINDOW, tokens - begin) + 1, 0) if tokens > begin else 0


@dataclass(frozen=True, slots=True)
class Intervals:
    """Point estimates and 95% bounds of one condition over all tokens: each [3, tokens]: value, low, high."""

    own: np.ndarray
    control: np.ndarray
    excess: np.ndarray
    half_life: tuple[float, float, float]


def intervals(sample: Sample, times: np.ndarray, begin: int) -> Intervals:
    """times: how often each message is in each resample, [resamples, messages]. begin: as in `half_lives`."""
    value, drawn = sample.curves(np.ones((1, sample.messages))), sample.curves(times)

    def bounded(one: np.ndarray, resampled: np.ndarray) -> np.ndarray:
        low, high = np.nanquantile(resampled, (0.025, 0.975), axis=0)
        return np.stack([one[0], low, high])

    lives = half_lives(drawn.excess, begin)
    lives = lives[~np.isnan(lives)]
    # Infinite ones have no mean between them.
    low, high = np.quantile(lives, (0.025, 0.975), method="inverted_cdf") if len(lives) else (np.nan, np.nan)
    return Intervals(
        bounded(value.own, drawn.own),
        bounded(value.control, drawn.control),
        bounded(value.excess, drawn.excess),
        (float(half_lives(value.excess, begin)[0]), float(low), float(high)),
    )
