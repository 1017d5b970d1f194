"""About how long each stage of a build takes: arithmetic alone, nothing is run here.

Estimates are of what was measured on the machine, a token's forward and a step of generation, and of counts. What an
engine needs is taken from the first by a factor, which was about 3.5 on a model of 135 million and on one of 1.5
billion parameters, on two CPU cores and on one (docs/results/experiments.md and the pages beside it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emovllm_offline.building.sizes import Counts, Sizes, Speed, Stage

# Replies that are generated together in process, and how long they and those of evaluations may be.
BATCH = 16
REPLY_TOKENS = 60
# An engine's token, replies being read and written, in tokens of a forward in float32.
ENGINE_TOKENS = 3.5
# Of its start: imports, loading, compilation.
ENGINE_START = 100.0
# Of a stage: imports, figures, a judge.
OVERHEAD = 10.0
# A token of which gradients are taken: forward, and backward through activations.
BACKWARD = 3.0
# A step of the exact importance, in tokens: half of the layers, four strengths, little in a batch.
EXACT = 8.0
# Seconds for a layer's probe and its control, by text and width.
FIT = 6.3e-7
# Of own replies under a circuit.
SAMPLES, STRENGTHS = 2, (0.8, 1.0)
EVENTS = 3


@dataclass(frozen=True, slots=True)
class Planned:
    """A stage: what it does in a few words, and about how many minutes it takes."""

    stage: Stage
    what: str
    minutes: float


def tried_styles(sizes: Sizes, counts: Counts) -> list[str]:
    """Those that are tried, of those that ask."""
    return list(counts.prompts)[: sizes.styles]


def estimates(sizes: Sizes, counts: Counts, speed: Speed) -> list[Planned]:
    """Every stage that there is with these sizes. What depends on whether the model obeys is counted as if it did."""
    cost = _Cost(sizes, counts, speed)
    styles = tried_styles(sizes, counts)
    tried, found = min(sizes.tried, counts.learn), min(sizes.found, counts.learn)
    prompted = min(sizes.prompted, counts.learn) if styles else 0
    strengths = len(sizes.lambdas)
    learnt, texts = cost.learnt, min(sizes.texts, counts.texts)
    chosen, tested = min(sizes.chosen, counts.choose), min(sizes.tested, counts.test)
    again = sizes.again and counts.again and learnt
    by = f", {len(counts.judging)} judges" if len(counts.judging) > 1 else ""
    rows: list[tuple[Stage, str, float, object]] = [
        ("elicit", f"{', '.join(styles)} on {tried} scenarios", cost.elicit(styles, tried), styles),
        ("prompt", f"{prompted} scenarios, if it obeys", cost.elicit(cost.longest, prompted), prompted > tried),
        ("discover", f"{found} scenarios, importance {sizes.importance}", cost.discover(found), True),
        ("refine", f"{learnt} messages, {_times(sizes.epochs)}", cost.refine(learnt, sizes.epochs), learnt),
        ("probe", f"{texts} texts", cost.probe(texts), texts),
        ("calibrate", f"{chosen} messages, {strengths} strengths", cost.asked(chosen, strengths), True),
        ("again", f"its own replies to {learnt} messages", cost.again(learnt, chosen), again),
        ("evaluate", f"{tested} messages that nothing was chosen by{by}", cost.evaluate(tested), True),
        ("write", "circuit, card and page", OVERHEAD, True),
    ]
    return [Planned(stage, what, seconds / 60) for stage, what, seconds, there in rows if there]


def _times(epochs: int) -> str:
    return "once" if epochs == 1 else f"{epochs} times"


class _Cost:
    """Seconds of stages."""

    def __init__(self, sizes: Sizes, counts: Counts, speed: Speed) -> None:
        self._sizes, self._counts, self._speed = sizes, counts, speed
        tried = tried_styles(sizes, counts)
        # Of the styles that may turn out to be obeyed.
        self.longest = sorted(tried, key=lambda name: counts.replies[name] * counts.prompts[name])[-1:]

    @property
    def learnt(self) -> int:
        """Messages to learn from: written ones, or the events that the model was asked."""
        prompted = EVENTS * min(self._sizes.prompted, self._counts.learn) if self._counts.prompts else 0
        return min(self._sizes.learnt, max(self._counts.written, prompted))

    def elicit(self, styles: Sequence[str], scenarios: int) -> float:
        if not scenarios or not styles:
            return 0.0
        seconds = OVERHEAD
        for name in styles:
            replies = EVENTS * scenarios * self._counts.emotions * self._counts.replies[name]
            seconds += self._speed.load + replies * self._counts.prompts[name] * self._speed.token
            seconds += -(-replies // BATCH) * REPLY_TOKENS * self._speed.step
            seconds += replies * self._counts.judging[0]
        return seconds

    def discover(self, scenarios: int) -> float:
        sizes, counts, speed = self._sizes, self._counts, self._speed
        read = EVENTS * scenarios * counts.emotions * counts.forced
        if sizes.importance == "exact":
            read += int(sizes.neutral * counts.emotions * 2 * speed.layers * EXACT)
        else:
            # One prompt more, by which the gradient is held to the exact one.
            read += int(sizes.neutral * BACKWARD * counts.message + counts.emotions * 2 * speed.layers * EXACT)
        return OVERHEAD + speed.load + read * speed.token

    def refine(self, messages: int, epochs: int) -> float:
        counts, speed = self._counts, self._speed
        replies = counts.emotions * counts.reply
        learnt = messages * epochs * (BACKWARD * replies + counts.message)
        held = held_out(messages, counts) * (epochs + 1) * (replies + counts.message)
        return OVERHEAD + speed.load + (learnt + held) * speed.token

    def probe(self, texts: int) -> float:
        speed = self._speed
        read = texts * self._counts.reply * speed.token
        return OVERHEAD + speed.load + read + speed.layers * texts * speed.hidden * FIT

    def asked(self, messages: int, strengths: int) -> float:
        """Of a calibration or an evaluation: plain, prompted and steered replies, and what each is worth."""
        counts, speed = self._counts, self._speed
        replies = self._replies(messages, strengths)
        prompts = messages * (counts.message + counts.emotions * max([*counts.prompts.values(), counts.message]))
        # Each reply given the neutral prompt, and given the one that asks.
        read = prompts + 2 * replies * REPLY_TOKENS
        engine = ENGINE_START + replies * REPLY_TOKENS * ENGINE_TOKENS * speed.token
        return OVERHEAD + engine + speed.load + read * speed.token + replies * counts.judging[0]

    def _replies(self, messages: int, strengths: int) -> int:
        return messages * (1 + self._counts.emotions * (1 + strengths))

    def evaluate(self, messages: int) -> float:
        further = self._counts.judging[1:]
        return self.asked(messages, 1) + sum(OVERHEAD + self._replies(messages, 1) * seconds for seconds in further)

    def again(self, messages: int, chosen: int) -> float:
        counts, speed = self._counts, self._speed
        samples = messages * counts.emotions * SAMPLES * len(STRENGTHS)
        sampled = ENGINE_START + samples * counts.reply * ENGINE_TOKENS * speed.token
        asked = messages * counts.emotions * max([*counts.prompts.values(), counts.message])
        sifted = speed.load + (asked + samples * counts.reply) * speed.token
        return sampled + sifted + self.refine(messages, 2) + self.asked(chosen, len(self._sizes.lambdas))


def held_out(messages: int, counts: Counts) -> int:
    """Messages to measure a refinement by: a sixth of those to learn from."""
    return min(max(2, messages // 6), max(counts.held, 2))
