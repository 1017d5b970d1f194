"""What `/metrics` tells of emotions, beside vLLM's own metrics: docs/reference/metrics.md lists it.

The collectors are made when they are first needed: vLLM sets PROMETHEUS_MULTIPROC_DIR when it starts several API server
processes, and each of those must find it set. They lie in the default registry, and their names do not begin with
`vllm:`, which vLLM would unregister.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from emovllm.emotion import NONE, Wire
from emovllm.errors import Reason
from emovllm.guards import Acted, Guard
from emovllm.readout import Readout, leads
from emovllm.spec import CircuitSpec

# A value of the label `emotion`, beside `none` and the circuits' own names.
MIX = "mix"
# vLLM's, as its `FinishReason` prints them.
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
REFUSALS: tuple[str, ...] = (*get_args(Reason), "other")

# In seconds, as vLLM's histograms of the same names.
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_TPOT = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
_E2E = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
_STRENGTH = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)


class Metrics:
    """The collectors. Labels are bounded: emotions of the circuits served, and the tuples above."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.requests = Counter(
            "emovllm_requests",
            "Requests that ended, each of n choices counting as one.",
            ("emotion", "finish_reason"),
            registry=registry,
        )
        self.tokens = Counter(
            "emovllm_generated_tokens",
            "Tokens generated for requests that ended.",
            ("emotion", "finish_reason"),
            registry=registry,
        )
        self.spared = Counter(
            "emovllm_spared_tokens",
            "Tokens of requests that ended which were not steered, though their request has an emotion: of its "
            "thinking and its tool calls.",
            ("emotion",),
            registry=registry,
        )
        self.running = Gauge(
            "emovllm_running_requests",
            "Requests accepted and not ended, those that wait included.",
            ("emotion",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.ttft = Histogram(
            "emovllm_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            ("emotion",),
            registry=registry,
            buckets=_TTFT,
        )
        self.tpot = Histogram(
            "emovllm_time_per_output_token_seconds",
            "A request's mean time between two of its tokens.",
            ("emotion",),
            registry=registry,
            buckets=_TPOT,
        )
        self.e2e = Histogram(
            "emovllm_e2e_request_latency_seconds",
            "From arrival to end, of requests that were not aborted.",
            ("emotion",),
            registry=registry,
            buckets=_E2E,
        )
        self.strength = Histogram(
            "emovllm_emotion_strength",
            "Strength of an emotion in a request (1 is the recommended one), in a blend of each of its emotions.",
            ("emotion",),
            registry=registry,
            buckets=_STRENGTH,
        )
        self.refusals = Counter(
            "emovllm_refusals", "Requests refused for their emotion fields.", ("reason",), registry=registry
        )
        self.replies = Counter(
            "emovllm_readout_replies",
            "Replies of requests that asked for a read-out, aborted ones apart.",
            ("emotion",),
            registry=registry,
        )
        self.probability = Counter(
            "emovllm_readout_probability",
            "What those replies read as: each one's mean probability of a label over its tokens, summed.",
            ("emotion", "label"),
            registry=registry,
        )
        self.leads = Counter(
            "emovllm_readout_leads",
            "Those replies that read as the emotion asked for before all other labels, neutral apart.",
            ("emotion",),
            registry=registry,
        )
        self.guard = Counter(
            "emovllm_guard", "Times that a guard acted, once a reply at most.", ("guard", "action"), registry=registry
        )
        # An Info does not work with several processes.
        self.circuit = Gauge(
            "emovllm_circuit_info",
            "1 for each circuit that is served, 0 for one that was unloaded.",
            ("name", "digest", "model", "emotions"),
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.build = Gauge(
            "emovllm_build_info",
            "1; the versions are the labels.",
            ("version", "vllm_version"),
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._recommended: dict[str, dict[str, float]] = {}  # by digest
        self._labels: tuple[str, ...] = ()
        # What is 0 is there from the start: a rate over a series that appears with its first event misses it.
        for reason in REFUSALS:
            self.refusals.labels(reason)
        for emotion in (NONE, MIX):
            self._expect(emotion)

    def _expect(self, emotion: str) -> None:
        for collector in (self.running, self.spared, self.ttft, self.tpot, self.e2e):
            collector.labels(emotion)
        for reason in FINISH_REASONS:
            self.requests.labels(emotion, reason)
            self.tokens.labels(emotion, reason)
        if self._labels:
            self._expect_readouts(emotion)

    def _expect_readouts(self, emotion: str) -> None:
        self.replies.labels(emotion)
        for label in self._labels:
            self.probability.labels(emotion, label)
        if self._can_lead(emotion):
            self.leads.labels(emotion)

    def _can_lead(self, emotion: str) -> bool:
        """An emotion that the probe does not know has no share of 0."""
        return emotion in self._labels and emotion not in (NONE, MIX)

    def reads(self, labels: Sequence[str]) -> None:
        """Replies may be read from here on, by these labels of a probe. Before any circuit is told of."""
        self._labels = tuple(labels)
        for emotion in (NONE, MIX):
            self._expect_readouts(emotion)

    def watched(self, guards: Sequence[Guard]) -> None:
        """Replies are watched by these guards."""
        for guard in guards:
            self.guard.labels(guard.name, guard.action)

    def guarded(self, acted: Sequence[Acted]) -> None:
        """What guards did to a reply that ended."""
        for each in acted:
            self.guard.labels(each.guard.name, each.guard.action).inc()

    def circuit_info(self, name: str, digest: str, spec: CircuitSpec, *, loaded: bool = True) -> None:
        """A circuit's requests are counted from here on; `loaded=False` says that it serves no longer."""
        emotions = [emotion.name for emotion in spec.emotions]
        self.circuit.labels(name, digest, spec.model.id, ",".join(emotions)).set(int(loaded))
        self._recommended[digest] = {emotion.name: emotion.recommended for emotion in spec.emotions}
        for emotion in emotions:
            self._expect(emotion)
            self.strength.labels(emotion)

    def started(self, wire: Wire | None) -> str:
        """A request was accepted; `wire` is its resolved emotion. Returns: its label."""
        weights = wire.weights if wire else {}
        emotion = MIX if len(weights) > 1 else next(iter(weights), NONE)
        self.running.labels(emotion).inc()
        recommended = self._recommended.get(wire.circuit, {}) if wire else {}
        for name, value in weights.items():
            if name in recommended:
                self.strength.labels(name).observe(value / recommended[name])
        return emotion

    def ended(self, emotion: str, reason: str, tokens: int, e2e: float) -> None:
        """`e2e`: seconds since its arrival."""
        self.running.labels(emotion).dec()
        self.requests.labels(emotion, reason).inc()
        self.tokens.labels(emotion, reason).inc(tokens)
        if reason != "abort":
            self.e2e.labels(emotion).observe(e2e)

    def read(self, emotion: str, readout: Readout) -> None:
        """`readout`: of a whole reply."""
        reply = readout.reply
        if not reply:
            return
        self.replies.labels(emotion).inc()
        for label, value in reply.items():
            self.probability.labels(emotion, label).inc(value)
        if self._can_lead(emotion) and leads(reply, emotion):
            self.leads.labels(emotion).inc()

    def timed(self, emotion: str, ttft: float, decode: float, tokens: int) -> None:
        """`ttft`, `decode` (from the first to the last of `tokens` tokens): seconds."""
        if tokens > 0:
            self.ttft.labels(emotion).observe(ttft)
        if tokens > 1:
            self.tpot.labels(emotion).observe(decode / (tokens - 1))


_metrics: Metrics | None = None


def metrics() -> Metrics:
    """This process's collectors."""
    global _metrics
    if _metrics is None:
        _metrics = Metrics()
    return _metrics


def circuit_info(name: str, digest: str, spec: CircuitSpec, *, loaded: bool = True) -> None:
    """Tells of a circuit that is served, or (`loaded=False`) was unloaded. Before its first request."""
    metrics().circuit_info(name, digest, spec, loaded=loaded)


def count_refusal(reason: str) -> None:
    """Counts a refused request, under `other` where the reason is none of `REFUSALS`."""
    metrics().refusals.labels(reason if reason in REFUSALS else "other").inc()
