"""Gains that depend on what was written and read, against a plain restatement, on requests in every order of work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch

from emovllm.emotion import Target, Wire
from emovllm.engine.arrays import Arrays
from emovllm.engine.calming import Calm
from emovllm.engine.coefficients import Coefficients
from emovllm.engine.gains import Gains, Inputs, Reads
from emovllm.guards import Guard
from emovllm.phases import BITS, Automaton, Markers

THINKING, TOOLS = BITS["thinking"], BITS["tools"]
# A vocabulary of ten: `a` to `f`, the two parts of a marker of two tokens, and two markers of one.
PIECES = ["a", "b", "c", "d", "e", "f", "<ca", "ll>", "</call>", "</think>"]
CALL, CALL2, ENDED, THOUGHT = 6, 7, 8, 9
AUTOMATON = Automaton(PIECES, {"thinking": Markers((), ("</think>",)), "tools": Markers(("<call>",), ("</call>",))})
LABELS = 3
VOCABULARY = 16


class Requests:
    """Requests on their way through a scheduler, whose replies are known beforehand."""

    def __init__(self, span: int, calms: Sequence[Calm] = (), on_host: bool = True) -> None:
        device = torch.device("cpu")
        gains = Gains(2, device, span, AUTOMATON, Reads(LABELS, 64), Arrays(device, on_host))
        self.calms = calms
        if calms:
            gains.guard(calms, 1)
        self.coefficients = Coefficients(1, 64, torch.device("cpu"), max_requests=2, gains=gains)
        self.coefficients.place("d", ["anger"], 0)
        self.span = span
        self.wires: dict[str, Wire] = {}
        self.prompt: dict[str, int] = {}
        self.tokens: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}
        self.random = np.random.default_rng(3)
        self.read: dict[str, np.ndarray] = {}

    def add(self, name: str, wire: Wire, prompt: int, reply: list[int]) -> None:
        self.wires[name], self.prompt[name], self.computed[name] = wire, prompt, 0
        self.tokens[name] = [*self.random.integers(0, 6, prompt).tolist(), *reply]
        self.read[name] = self.random.normal(size=(len(self.tokens[name]), LABELS)).astype(np.float32)
        self.coefficients.join(name, wire, prompt)

    def resume(self, name: str) -> None:
        """After a preemption, all computed anew; the last token is what it goes on with."""
        known = self.tokens[name][: self.computed[name] + 1]
        self.computed[name] = 0
        self.coefficients.join(name, self.wires[name], self.prompt[name], lambda: known)

    def step(self, scheduled: dict[str, int], wrong: int = 0) -> None:
        """One forward; of each request's tokens beyond its prompt, the last `wrong` are drafts that are rejected."""
        names = list(scheduled)
        counts = np.array([scheduled[name] for name in names])
        computed = np.array([self.computed[name] for name in names])
        positions = [self.computed[name] + i for name in names for i in range(scheduled[name])]
        tokens = []
        for name in names:
            own = self.tokens[name][self.computed[name] : self.computed[name] + scheduled[name]]
            if wrong and self.computed[name] >= self.prompt[name]:
                own[-wrong:] = self.random.integers(0, len(PIECES), wrong).tolist()
            tokens += own
        inputs = Inputs(torch.tensor(tokens, dtype=torch.int32), torch.tensor(positions))
        self.coefficients.update(names, counts, computed, inputs=inputs)
        logits = np.concatenate(
            [self.read[name][self.computed[name] : self.computed[name] + scheduled[name]] for name in names]
        )
        if wrong:
            logits += self.random.normal(size=logits.shape).astype(np.float32) * self._rejected(names, scheduled, wrong)
        self.coefficients.gains.take(torch.from_numpy(logits))
        buffer = self.coefficients.buffer.numpy()[:, 0]
        row = 0
        for name in names:
            drafted = wrong if self.computed[name] >= self.prompt[name] else 0
            taken = scheduled[name] - drafted
            wanted = self.expected(name)[self.computed[name] : self.computed[name] + taken]
            np.testing.assert_allclose(buffer[row : row + taken], wanted, atol=1e-6, err_msg=name)
            row += scheduled[name]
            self.computed[name] += taken
        assert not buffer[row:].any()

    def _rejected(self, names: list[str], scheduled: dict[str, int], wrong: int) -> np.ndarray:
        rows = []
        for name in names:
            count = scheduled[name]
            drafted = wrong if self.computed[name] >= self.prompt[name] else 0
            rows += [0.0] * (count - drafted) + [1.0] * drafted
        return np.array(rows, np.float32)[:, None]

    def expected(self, name: str) -> np.ndarray:
        """The coefficient of each token of prompt and reply, by the words of the docs."""
        wire, prompt, tokens = self.wires[name], self.prompt[name], self.tokens[name]
        first = prompt - 1
        text, gain = "", 1.0
        values = np.zeros(len(tokens))
        for position in range(first, len(tokens)):
            if position > first:
                text += PIECES[tokens[position]]
            steered = True
            if wire.muted & THINKING and wire.within & THINKING and "</think>" not in text:
                steered = False
            if wire.muted & TOOLS:
                answer = text.rpartition("</think>")[2] if "</think>" in text else text
                after = answer.rpartition("</call>")[2]
                steered = steered and not ("<call>" in after or not after or after.endswith("<ca"))
            place = position - first
            if wire.target is not None and place >= self.span and steered:
                logits = self.read[name][position - self.span].astype(np.float64)
                chances = np.exp(logits) / np.exp(logits).sum()
                read = chances[list(wire.target.labels)].sum()
                gain = min(max(gain + wire.target.rate * (wire.target.level - read), 0.0), wire.target.cap)
            weight = wire.weights.get("anger", 0.0) * (place == 0 or wire.scope != "prompt_last")
            values[position] = weight * steered * gain
            calming = [calm for calm in self.calms if self.calms_at(name, calm, place)]
            if calming:
                values[position] = sum(calm.against[0] for calm in calming)
        return values

    def calms_at(self, name: str, calm: Calm, place: int) -> bool:
        """Whether a guard's last readings before a token of the reply were all above its bound."""
        first = self.prompt[name] - 1
        logits = self.read[name][first : first + max(place - self.span + 1, 0)]
        chances = np.exp(logits)[:, calm.label] / np.exp(logits).sum(-1)
        return len(chances) >= calm.tokens and bool((chances[-calm.tokens :] > calm.bound).all())


def wire(muted: int = 0, within: int = 0, target: Target | None = None) -> Wire:
    return Wire("d", {"anger": 1.5}, "generation", muted=muted, within=within, target=target)


TARGET = Target(0.6, 0.8, (0, 2), 1.7)
WIRES = {
    "thinking": wire(THINKING, THINKING),
    "answering": wire(THINKING, 0),
    "tools": wire(TOOLS),
    "both": wire(THINKING | TOOLS, THINKING),
    "target": wire(target=TARGET),
    "all": wire(THINKING | TOOLS, THINKING, TARGET),
    "plain": wire(),
}
REPLY = [0, 1, THOUGHT, CALL, CALL2, 2, 3, ENDED, 4, 5, 0, CALL, 1, 2, 3, CALL, CALL2, 1, 2, 0, 1]


# That a request may be calmed is all that its guards tell here.
GUARDS = (Guard.parse("anger>0.5:calm"),)
CALMS = (Calm(1, 0.4, 2, {0: -0.7}), Calm(2, 0.6, 1, {0: -0.2}))


Make = Callable[..., Requests]


@pytest.fixture(params=[True, False], ids=["numpy", "torch"])
def requests(request: pytest.FixtureRequest) -> Make:
    """Makes them, with all that can be asked for. A device's arrays are PyTorch's, which work the same on a CPU."""
    return partial(made_requests, request.param)


def made_requests(on_host: bool, span: int = 1, calms: Sequence[Calm] = ()) -> Requests:
    made = Requests(span, calms, on_host)
    for number, (name, asked) in enumerate(WIRES.items()):
        made.add(name, asked._replace(guards=GUARDS if calms else ()), 3 + number, REPLY)
    if calms:
        made.add("nothing", Wire("", {}, "generation", guards=GUARDS), 4, REPLY)
        made.add("once", Wire("d", {"anger": 1.5}, "prompt_last", guards=GUARDS), 5, REPLY)
    return made


guarded = pytest.mark.parametrize("calms", [(), CALMS], ids=["", "guarded"])


@guarded
def test_a_token_at_a_time(requests: Make, calms: Sequence[Calm]) -> None:
    made = requests(calms=calms)
    names = made.wires
    made.step({name: made.prompt[name] for name in names})
    for _ in range(len(REPLY) - 1):
        made.step(dict.fromkeys(names, 1))
    calmed = [made.calms_at(name, calm, place) for name in names for calm in calms for place in range(len(REPLY))]
    assert not calms or 0 < sum(calmed) < len(calmed)


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_prompts_in_chunks_beside_replies(requests: Make, chunk: int) -> None:
    made = requests()
    for _ in range(len(REPLY)):
        left = {name: max(made.prompt[name] - made.computed[name], 0) for name in WIRES}
        made.step({name: min(chunk, tokens) or 1 for name, tokens in left.items()})


@pytest.mark.parametrize("alone", [1, 2, 3])
def test_a_target_that_comes_later_changes_nothing_of_those_beside_it(requests: Make, alone: int) -> None:
    made = requests()
    beside = {name: made.prompt[name] for name in ("answering", "plain")}
    for name in WIRES.keys() - beside:
        made.coefficients.leave(name)
    made.step(beside)
    for _ in range(alone):
        made.step(dict.fromkeys(beside, 1))
    made.add("late", WIRES["target"], 7, REPLY)
    made.step({"late": 7, **dict.fromkeys(beside, 1)})
    for _ in range(4):
        made.step(dict.fromkeys([*beside, "late"], 1))


@guarded
def test_requests_that_come_go_and_are_preempted(requests: Make, calms: Sequence[Calm]) -> None:
    made = requests(calms=calms)
    made.step({name: made.prompt[name] for name in WIRES})
    for number in range(9):
        made.step(dict.fromkeys(list(WIRES)[number % 3 :], 1))
    for name in ("all", "tools", "target", *(["plain"] if calms else [])):
        made.resume(name)
        # Some of it at first; then the rest, beside others.
        made.step({name: 5, "both": 1})
        rest = made.prompt[name] + 3 - made.computed[name]
        made.step({name: rest, "thinking": 1})
    for name in ("all", "target"):
        made.step({name: 1, "plain": 1})
    # Whoever comes into its place has none of it.
    made.coefficients.leave("all")
    made.add("other", wire()._replace(guards=GUARDS if calms else ()), 3, REPLY)
    made.step({"other": 3, "target": 1})
    made.step({"other": 1, "target": 1})


@guarded
@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_drafts_change_nothing_whichever_are_accepted(requests: Make, wrong: int, calms: Sequence[Calm]) -> None:
    made = requests(4, calms)
    made.step({name: made.prompt[name] for name in WIRES})
    while all(made.computed[name] + 4 <= len(made.tokens[name]) for name in WIRES):
        made.step(dict.fromkeys(WIRES, 4), wrong)


def test_what_an_engine_does_not_know_is_refused() -> None:
    gains = Gains(1, torch.device("cpu"))
    for asked in (wire(THINKING), wire(target=TARGET)):
        with pytest.raises(RuntimeError, match="does not know"):
            gains.join(0, asked, 3, [])


def test_tokens_beyond_the_tokenizers_end_nothing() -> None:
    states = AUTOMATON.advance(AUTOMATON.start(THINKING), [0, len(PIECES) + 3, 1])
    assert [int(AUTOMATON.spared[state]) & THINKING for state in states] == [THINKING] * 3
