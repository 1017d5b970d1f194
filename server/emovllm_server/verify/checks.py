"""What replies say of an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emovllm_server.bench.ratios import Ratio, ratio

# Of log-probabilities in float32, where only the order of sums differs.
TOLERANCE = 1e-3
# How many times as far from the reference as plain vLLM a steered engine may be, in a type that rounds; a batch of few
# tokens measures either to no more than that.
TIMES_PLAIN = 2.0


@dataclass(frozen=True, slots=True)
class Reply:
    """tokens, and the log-probability of each."""

    tokens: list[int]
    logprobs: list[float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """passed: None where a check could not be made, or measures and judges nothing. figures: what was found."""

    name: str
    passed: bool | None
    told: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """Replies beside others, up to the first token in which a reply and its other part: beyond, contexts differ.

    equal: the share of tokens up to there. largest, mean: differences of these tokens' log-probabilities.
    """

    equal: float
    largest: float
    mean: float

    @property
    def exact(self) -> bool:
        return self.equal == 1.0 and self.largest < TOLERANCE


def difference(replies: Sequence[Reply], others: Sequence[Reply]) -> Difference:
    common, apart = 0, []
    for reply, other in zip(replies, others, strict=True):
        same = np.array(reply.tokens) == np.array(other.tokens)
        until = len(same) if same.all() else int(same.argmin())
        common += until
        # Where they part, the two may have been as good as equal: what each thought of its own token still compares.
        scored = min(until + 1, len(same))
        apart += [abs(a - b) for a, b in zip(reply.logprobs[:scored], other.logprobs[:scored], strict=True)]
    total = sum(len(other.tokens) for other in others)
    return Difference(common / total, float(np.max(apart)), float(np.mean(apart)))


def exactness(name: str, replies: Sequence[Reply], wanted: Sequence[Reply]) -> Verdict:
    """In float32: equal tokens, and log-probabilities within the tolerance."""
    found = difference(replies, wanted)
    told = f"{found.equal:.1%} of the tokens equal Hugging Face's, log-probabilities within {found.largest:.2g}"
    return Verdict(name, found.exact, f"{told} (limit {TOLERANCE:g})", _figures(found))


def as_exact_as_plain(name: str, steered: Difference, plain: Difference, moved: float) -> Verdict:
    """In a type that rounds, no two implementations agree on every token: the engine may differ from the reference as
    plain vLLM does.

    moved: what the emotions change in the reference's log-probabilities, on the mean.
    """
    limit = max(TIMES_PLAIN * plain.mean, TOLERANCE)
    told = (
        f"log-probabilities differ from Hugging Face's by {steered.mean:.2g}, plain vLLM's by {plain.mean:.2g} (limit "
        f"{limit:.2g}); the emotions move them by {moved:.2g}"
    )
    figures = {**_figures(steered), "plain_mean": plain.mean, "moved": moved, "limit": limit}
    if moved <= limit:
        return Verdict(name, None, f"{told}: too little to tell whether they are there", figures)
    return Verdict(name, steered.mean <= limit, told, figures)


def shared_prefix(replies: Sequence[Reply], wanted: Sequence[Reply], hits: int, shared: bool) -> Verdict:
    """In float32, a prompt in one emotion after another. shared: whether something must have been in the cache."""
    found = exactness("exact on a shared prefix", replies, wanted)
    figures = {**found.figures, "hits": hits}
    if shared and not hits:
        return Verdict(found.name, False, "nothing was found in the prefix cache", figures)
    return Verdict(found.name, found.passed, f"{found.told}; {hits} tokens were in the cache", figures)


def neighbours(
    together: Sequence[Reply], alone: Sequence[Reply], again: Sequence[Reply], rounding: float = 0.0
) -> Verdict:
    """Plain requests beside steered ones, and beside plain ones twice.

    rounding: what plain vLLM's log-probabilities are off by; experts sum in another order beside other tokens.
    """
    found, noise = difference(together, alone), difference(again, alone)
    limit = max(2 * noise.largest, rounding, TOLERANCE)
    told = (
        f"plain requests beside steered ones differ from themselves beside plain ones by {found.largest:.2g}, from one "
        f"run to the next by {noise.largest:.2g} (limit {limit:.2g})"
    )
    return Verdict("neighbours untouched", found.largest <= limit, told, {**_figures(found), "limit": limit})


def emotions_move(steered: Sequence[Reply], plain: Sequence[Reply]) -> Verdict:
    """Without which no other check says anything."""
    same = [a.tokens == b.tokens and max(_apart(a, b)) < TOLERANCE for a, b in zip(steered, plain, strict=True)]
    told = f"{len(same) - sum(same)} of {len(same)} steered replies differ from the plain ones"
    return Verdict("emotions are felt", not any(same), told, {"moved": len(same) - sum(same), "of": len(same)})


def moved_by(steered: Sequence[Reply], plain: Sequence[Reply]) -> float:
    """The mean difference of the log-probabilities of first tokens, which have one context."""
    return float(np.mean([abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(steered, plain, strict=True)]))


def ranks(sites: Sequence[Sequence[str]], tensor_parallel: int) -> Verdict:
    """sites: of each rank's report. Every rank of a stage holds its part of the same sites."""
    stages = {tuple(sorted(rank)) for rank in sites}
    held = sorted({site for rank in sites for site in rank})
    told = f"{len(held)} sites on {len(sites)} rank{'s' if len(sites) > 1 else ''}"
    passed = bool(held) and len(sites) == tensor_parallel * len(stages)
    return Verdict("every rank holds its sites", passed, told, {"sites": len(held), "ranks": len(sites)})


def quantized_weights(distances: Mapping[str, tuple[float, float]]) -> Verdict:
    """Whether a circuit is that of quantised weights. distances: of each site from the circuit's fingerprint, relative,
    and its limit."""
    worst = max(distances, key=lambda key: distances[key][0] / distances[key][1])
    distance, limit = distances[worst]
    by_site = {key: distance for key, (distance, _) in distances.items()}
    told = (
        f"through the quantised weights {len(by_site)} sites are {min(by_site.values()):.2g} to "
        f"{max(by_site.values()):.2g} from the circuit's fingerprint, the nearest to its limit {worst}: {distance:.2g} "
        f"(limit {limit})"
    )
    return Verdict("weights are the circuit's", distance <= limit, told, {"distance_by_site": by_site})


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per token after the first, a figure for each round."""

    plain: list[float]
    idle: list[float]
    steered: list[float]


def cost(timing: Timing, in_turn: bool) -> Verdict:
    """Measured, and not judged: what else the machine does is in it too.

    in_turn: whether the engines were timed in turn; one after the other, a machine that slows down counts as a cost.
    """
    figures: dict[str, Any] = {"plain_ms": float(np.mean(timing.plain)) * 1000, "rounds": len(timing.plain)}
    told = []
    for name, values in (("idle", timing.idle), ("all steered", timing.steered)):
        logs = [float(np.log(a / b)) for a, b in zip(values, timing.plain, strict=True)]
        found = ratio({"rounds": logs})
        figures[name.replace(" ", "_")] = {"ratio": found.mean, "low": found.low, "high": found.high}
        told.append(f"{name} {_interval(found)}")
    how = "" if in_turn else ", timed one after the other"
    text = f"plain {figures['plain_ms']:.2f} ms; in ratio to it, {', '.join(told)} ({len(timing.plain)} rounds{how})"
    return Verdict("time per output token", None, text, figures)


def _interval(found: Ratio) -> str:
    return f"{found.mean:.3f}" + (f" [{found.low:.3f}, {found.high:.3f}]" if found.low is not None else "")


def _apart(reply: Reply, other: Reply) -> list[float]:
    return [abs(a - b) for a, b in zip(reply.logprobs, other.logprobs, strict=True)]


def _figures(found: Difference) -> dict[str, Any]:
    return {"equal": found.equal, "largest": found.largest, "mean": found.mean}
