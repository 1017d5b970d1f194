"""What a request's fields (`emovllm.fields`) resolve to: an `Emotion`, whose `Wire` crosses to the engine.

Needs neither torch nor vLLM: the server, the engine and offline callers share it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from emovllm.guards import Guard
from emovllm.phases import BITS, Phase
from emovllm.readout import Reading
from emovllm.schedule import Schedule
from emovllm.spec import Scope

Method = Literal["circuit", "steering"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
METHODS: tuple[Method, ...] = get_args(Method)
# Asks for the plain model, where the operator has set a default emotion.
NONE = "none"
# Where what is ours lies among what is others': in vLLM's `additional_config` and `extra_args`.
KEY = "emovllm"
# The scope that spares the thinking, and that which begins so many tokens before the reply.
ANSWER = "answer"
TAIL = "prompt_tail:"
MAX_TAIL = 512


def first_position(scope: str, prompt_len: int) -> int:
    """The first position of a request that a scope injects."""
    if scope == "all":
        return 0
    tail = int(scope.removeprefix(TAIL)) if scope.startswith(TAIL) else 1
    return max(prompt_len - tail, 0)


class Target(NamedTuple):
    """How strong a request's emotion is to be felt: `emotion_target`, a loop that the read-out closes.

    The gain of the reply's first tokens is 1; from one token to the next it grows by `rate` times what the read-out is
    below `level`, and falls likewise, within 0 and `cap`. What was read counts from the next token on, or as many later
    as the engine drafts. Crosses processes with a request, as a list.

    level: the probability that the probe is to give the emotions that are asked for, from 0 to 1.
    labels: theirs among the probe's. cap: the gain at which the request is as strong as it may be.
    """

    level: float
    rate: float
    labels: tuple[int, ...] = ()
    cap: float = 1.0

    @classmethod
    def carried(cls, value: Any) -> Target | None:
        """What crossed to another process."""
        if value is None or isinstance(value, cls):
            return value
        level, rate, labels, cap = value
        return cls(level, rate, tuple(labels), cap)

    def gains(self, read: np.ndarray, live: np.ndarray, span: int) -> np.ndarray:
        """The gain of each token of a reply.

        Args:
            read: float32 [n], the probability that was read where each was written, as far as it is known.
            live: bool [m], whether each is steered at all; while none is, the gain stays.
            span: how many tokens before one what it goes by was read.
        Returns: float32 [m].
        """
        gains = np.ones(len(live), np.float32)
        for token in range(1, len(live)):
            gain = gains[token - 1]
            if token >= span and live[token]:
                step = np.float32(self.rate) * (np.float32(self.level) - read[token - span])
                gain = np.clip(gain + step, np.float32(0), np.float32(self.cap))
            gains[token] = gain
        return gains

    def body(self) -> dict[str, float]:
        """As a request may ask for it."""
        return {"level": self.level, "rate": self.rate}


@dataclass(frozen=True, slots=True)
class Emotion:
    """A request's emotion, resolved against a circuit.

    `weights` are the lambdas of method section 8, (emotion, lambda) sorted by name, none of them 0. With the method
    `steering`, the baseline that evaluations compare with, they count in `emovllm.baseline.RATIO`. `muted` are the
    phases of the reply that are spared. `start` is where the prompt ends that the scope counts from, where that is not
    vLLM's: `emotion_from`, negative from the end.
    """

    weights: tuple[tuple[str, float], ...]
    scope: str
    method: Method = "circuit"
    schedule: Schedule | None = None
    muted: tuple[Phase, ...] = ()
    target: Target | None = None
    start: int | None = None

    def wire(self, circuit_digest: str) -> Wire:
        muted = sum(BITS[phase] for phase in self.muted)
        weights = dict(self.weights)
        return Wire(
            circuit_digest, weights, self.scope, self.method, self.start, None, self.schedule, muted, 0, self.target
        )


class Wire(NamedTuple):
    """An emotion on its way to engine and workers, in `SamplingParams.extra_args["emovllm"]`, as a list once it
    has crossed to another process.

    circuit: its digest. prompt_len: of the request's prompt, where that is shorter than vLLM's for it: each step of a
    beam is a request whose prompt holds generated tokens, and a prompt may hold a reply that is to be scored
    (`emotion_from`; negative from its end until the prompt is known). reading: what is read for the request, if it
    asked. muted: the bits of the phases that are spared (`emovllm.phases`); within: of those that the prompt leaves
    open. guards: the operator's, for which a request is read although it did not ask: `untold`.
    """

    circuit: str
    weights: dict[str, float]
    scope: str
    method: Method = "circuit"
    prompt_len: int | None = None
    reading: Reading | None = None
    schedule: Schedule | None = None
    muted: int = 0
    within: int = 0
    target: Target | None = None
    guards: tuple[Guard, ...] = ()
    untold: bool = False

    @classmethod
    def of(cls, params: Any) -> Wire | None:
        """The resolved emotion of a request's sampling parameters, or None where nothing can be injected."""
        wire = cls._in(params)
        return wire if wire is not None and (wire.weights or wire.calm) else None

    @classmethod
    def reading_of(cls, params: Any) -> Reading | None:
        """What is read for a request, by its sampling parameters, or None."""
        wire = cls._in(params)
        return wire.reading if wire is not None else None

    @classmethod
    def read_for(cls, params: Any) -> Wire | None:
        """The same, with all that it is read for, or None."""
        wire = cls._in(params)
        return wire if wire is not None and wire.reading is not None else None

    @classmethod
    def _in(cls, params: Any) -> Wire | None:
        value = (params.extra_args or {}).get(KEY) if params is not None else None
        if value is None or isinstance(value, cls):
            return value
        wire = cls(*value)
        guards = tuple(Guard(*guard) for guard in wire.guards)
        return wire._replace(
            schedule=Schedule.carried(wire.schedule), target=Target.carried(wire.target), guards=guards
        )

    def prompt_length(self, prompt_len: int) -> int:
        """The length of the request's prompt, which vLLM takes for `prompt_len`."""
        return prompt_len if self.prompt_len is None else self.prompt_len

    def first(self, prompt_len: int) -> int:
        """The first position that is injected. prompt_len: as vLLM takes it."""
        return first_position(self.scope, self.prompt_length(prompt_len))

    @property
    def calm(self) -> bool:
        """Whether a guard may calm it, plain or not."""
        return any(guard.action == "calm" for guard in self.guards)

    @property
    def changes(self) -> bool:
        """Whether what is injected changes over the reply."""
        return bool(self.schedule is not None or self.muted or self.target is not None or self.calm)

    def cache_key(self) -> str:
        """A stable text for the prefix cache: equal exactly when the injected vectors and positions are."""
        key = [self.circuit, sorted(self.weights.items()), self.scope, self.method]
        in_time = {
            "schedule": self.schedule.body() if self.schedule is not None else None,
            "muted": [self.muted, self.within] if self.muted else None,
            "target": self.target,
            "calm": self.calm or None,
        }
        given = {name: value for name, value in in_time.items() if value is not None}
        return json.dumps([*key, given] if given else key)

    def __deepcopy__(self, memo: Any) -> Wire:
        # Nobody changes one, and vLLM copies each request's parameters.
        return self
