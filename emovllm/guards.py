"""The operator's guards: what is done to a reply in which the probe reads a label above a bound, some tokens in a row.

They hold for every request of an engine, and no request can switch them off. Needs neither torch nor vLLM.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
from pydantic import BeforeValidator, PlainSerializer

from emovllm.errors import EmotionError
from emovllm.probe import probabilities

Action = Literal["flag", "stop", "calm"]
ACTIONS: tuple[Action, ...] = get_args(Action)
# How many tokens in a row are above the bound, where the operator does not say.
TOKENS = 4
MAX_TOKENS = 4096
GRAMMAR = f"LABEL>BOUND[xTOKENS]:ACTION, as in 'anger>0.9x{TOKENS}:flag'"
_TEXT = re.compile(r"([a-z][a-z0-9_-]{0,63})\s*>\s*([0-9.]+(?:e-?[0-9]+)?)(?:\s*x\s*([0-9]{1,9}))?\s*:\s*([a-z]+)")


class Guard(NamedTuple):
    """One of them: acts with the last of `tokens` tokens in a row that read as `label` with more than `bound`.

    Crosses processes with a request, as a list.
    """

    label: str
    bound: float
    tokens: int
    action: Action

    @classmethod
    def parse(cls, text: Any) -> Guard:
        """Reads what `name` and `action` are written as. Raises: ValueError, which says what is wrong."""
        if isinstance(text, cls):
            return text
        found = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"a guard is written {GRAMMAR}, and not {str(text)[:100]!r}")
        label, bound, tokens, action = found.groups()
        if action not in ACTIONS:
            raise ValueError(f"the guard {text.strip()!r}: {action} is none of {', '.join(ACTIONS)}")
        try:
            guard = cls(label, float(bound), int(tokens) if tokens else TOKENS, action)  # type: ignore[arg-type]
        except ValueError:
            raise ValueError(f"the guard {text.strip()!r}: {bound} is no number") from None
        if not 0 < guard.bound < 1:
            raise ValueError(f"the guard {text.strip()!r}: its bound is a probability between 0 and 1, both excluded")
        if not 0 < guard.tokens <= MAX_TOKENS:
            raise ValueError(f"the guard {text.strip()!r}: its tokens are 1 to {MAX_TOKENS}")
        return guard

    @property
    def name(self) -> str:
        """What it acts at."""
        return f"{self.label}>{self.bound}x{self.tokens}"

    @property
    def reason(self) -> str:
        """vLLM's `stop_reason` of a reply that it ended."""
        return f"emotion_guard: {self.name}"

    def __str__(self) -> str:
        return f"{self.name}:{self.action}"


def _parsed(value: Any) -> tuple[Guard, ...]:
    """Raises: ValueError."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"guards are a list, of texts of the form {GRAMMAR}")
    return tuple(map(Guard.parse, value))


# In the settings: texts, or guards.
GuardList = Annotated[
    tuple[Guard, ...], BeforeValidator(_parsed), PlainSerializer(lambda guards: list(map(str, guards)))
]


def check_guards(guards: Sequence[Guard], labels: Sequence[str] | None) -> None:
    """Raises: EmotionError where an engine that reads these labels (None: reads nothing) cannot keep the guards."""
    if guards and labels is None:
        raise EmotionError("guards", "a guard needs a read-out: add --readout, or --probe DIR")
    names: set[str] = set()
    for guard in guards:
        if guard.label not in (labels or ()):
            raise EmotionError(
                "guards", f"the guard {guard}: the probe has no label {guard.label}; it reads {', '.join(labels or ())}"
            )
        if guard.name in names:
            raise EmotionError("guards", f"the guard {guard.name} is given twice; give it once, with one action")
        names.add(guard.name)


class Acted(NamedTuple):
    """A guard that acted in a reply, and with which of its tokens, counted from 0."""

    guard: Guard
    token: int

    def body(self) -> dict[str, Any]:
        """For an answer."""
        return {"guard": self.guard.name, "action": self.guard.action, "token": self.token}


class Watch:
    """The guards over one reply, as it comes in. Each acts once at most, and none after the token that ends it.

    width: how many labels are read. ended: the guard that ended the reply, with its last token.
    """

    def __init__(self, guards: Iterable[Guard], labels: Sequence[str]) -> None:
        """labels: in the order of the columns that are read."""
        self.width = len(labels)
        self._guards = tuple(guards)
        self._columns = [labels.index(guard.label) for guard in self._guards]
        # In the precision of what is read, as on the device.
        self._bounds = np.array([guard.bound for guard in self._guards], np.float32)
        self._runs = [0] * len(self._guards)
        self._seen = 0
        self._acted: list[Acted] = []
        self.ended: Acted | None = None

    def over(self, logits: np.ndarray) -> list[list[bool]]:
        """Which guards' bounds tokens are above, for this reply or another of the same server: float32
        [tokens, labels] to [tokens][guards]."""
        over: list[list[bool]] = (probabilities(logits)[:, self._columns] > self._bounds).tolist()
        return over

    def see(self, over: Iterable[Sequence[bool]]) -> None:
        """Takes in the tokens of a step, as `over` tells them."""
        for row in over:
            if self.ended is not None:
                return
            for number, above in enumerate(row):
                self._runs[number] = self._runs[number] + 1 if above else 0
                guard = self._guards[number]
                if self._runs[number] >= guard.tokens and all(acted.guard != guard for acted in self._acted):
                    self._act(Acted(guard, self._seen))
            self._seen += 1

    def _act(self, acted: Acted) -> None:
        self._acted.append(acted)
        if acted.guard.action == "stop" and self.ended is None:
            self.ended = acted

    def acted(self, tokens: int) -> list[Acted]:
        """What happened in the first `tokens` tokens, which may be all that was kept of a reply."""
        return [acted for acted in self._acted if acted.token < tokens]
