"""The read-out: what a probe reads in the hidden states that wrote a reply, one reading a token.

The state of a token is the one that *wrote* it, of the row that the sampler reads: for the first token that is the
prompt's last, so that its reading is what the model makes of the prompt. Needs neither torch nor vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from emovllm.probe import LayerProbe, probabilities

# How much a request is told: what the whole reply reads as, or each token too.
Detail = Literal["reply", "tokens"]
DETAILS: tuple[Detail, ...] = get_args(Detail)
# Of a probe's labels, the one that says that there is no emotion.
NEUTRAL = "neutral"
# Probabilities in answers have as many decimals.
_DECIMALS = 5


class Reading(NamedTuple):
    """What an engine reads: the probe of a layer (`emovllm.probe`), by its digest. Crosses processes with a request."""

    probe: str
    layer: int
    labels: tuple[str, ...]

    @classmethod
    def of(cls, digest: str, probe: LayerProbe) -> Reading:
        return cls(digest, probe.layer, probe.labels)

    def body(self) -> dict[str, Any]:
        """For answers that say what is read."""
        return {"probe": self.probe, "layer": self.layer, "labels": list(self.labels)}


@dataclass(frozen=True, slots=True)
class Readout:
    """The read-out of a reply, or of the part of one that a stream's output holds.

    logits: float32 [tokens, labels].
    """

    reading: Reading
    logits: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """[tokens, labels]."""
        return probabilities(self.logits)

    @property
    def prompt(self) -> dict[str, float]:
        """What the model makes of the prompt: the reading of the reply's first token."""
        return self._named(self.probabilities[0]) if len(self.logits) else {}

    @property
    def reply(self) -> dict[str, float]:
        """The mean probability over the reply's tokens."""
        return self._named(self.probabilities.mean(0)) if len(self.logits) else {}

    def __add__(self, other: Readout) -> Readout:
        """This part of a reply and the one after it."""
        return _join([self, other])

    def body(self, detail: Detail) -> dict[str, Any]:
        """For an answer."""
        told = {**self.reading.body(), "prompt": self.prompt, "reply": self.reply}
        return {**told, "tokens": self.tokens()} if detail == "tokens" else told

    def tokens(self) -> list[list[float]]:
        """The probabilities of each token, in the order of the labels."""
        rounded: list[list[float]] = np.round(self.probabilities.astype(np.float64), _DECIMALS).tolist()
        return rounded

    def _named(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self.reading.labels, np.round(values.astype(np.float64), _DECIMALS).tolist(), strict=True))


def leads(read: Mapping[str, float], emotion: str) -> bool:
    """Whether an emotion is likelier than all other labels but `neutral`; `read`: the probability of each label."""
    others = [value for label, value in read.items() if label not in (emotion, NEUTRAL)]
    return read[emotion] > max(others, default=0.0)


def leading(read: Mapping[str, float]) -> str:
    """The likeliest of the labels but `neutral`, the first of equals."""
    return max((label for label in read if label != NEUTRAL), key=read.__getitem__)


class Readouts:
    """Those of one answer, by its choices, as they come in."""

    def __init__(self) -> None:
        # How many prompts were sent to the engine so far.
        self.prompts = 0
        self._parts: dict[int, list[Readout]] = {}
        self._told: dict[int, int] = {}

    def add(self, choice: int, part: Readout) -> None:
        self._parts.setdefault(choice, []).append(part)

    def whole(self, choice: int | None = None) -> Readout | None:
        """Of a choice, or of all one after the other; None where nothing was read."""
        chosen = self._parts.values() if choice is None else [self._parts.get(choice, [])]
        return _joined([part for parts in chosen for part in parts])

    def untold(self, choice: int | None = None) -> Readout | None:
        """What came since this was asked last."""
        choices = list(self._parts) if choice is None else [choice]
        parts: list[Readout] = []
        for each in choices:
            of_choice = self._parts.get(each, [])
            parts += of_choice[self._told.get(each, 0) :]
            self._told[each] = len(of_choice)
        return _joined(parts)


def _joined(parts: list[Readout]) -> Readout | None:
    return _join(parts) if parts else None


def _join(parts: list[Readout]) -> Readout:
    return replace(parts[0], logits=np.concatenate([part.logits for part in parts]))
