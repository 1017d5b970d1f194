"""The figures of one frame: what happened between two readings of a server's metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from emovllm_server.metrics.collectors import MIX, NONE
from emovllm_server.top.scrape import Scrape


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Seconds; NaN where nothing was measured."""

    median: float
    p95: float


@dataclass(frozen=True, slots=True)
class Row:
    """One emotion. Rates are per second, and None where there is no earlier reading."""

    emotion: str
    running: int
    requests: int
    tokens: int
    request_rate: float | None
    token_rate: float | None
    ttft: Quantiles
    tpot: Quantiles
    e2e: Quantiles


@dataclass(frozen=True, slots=True)
class ReadRow:
    """What the replies of one emotion read as.

    leads: the share that reads as the emotion asked for before all others; NaN for `none`, `mix`, and an emotion that
        the probe does not know. means: the mean probability of each label, the largest first.
    """

    emotion: str
    replies: int
    leads: float
    means: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """`seconds` between the readings, None for the time since the server's start. Uses and rates of hits are 0 to 1,
    NaN where unknown; `refusals` are since the server's start. `read` is empty where no reply was read."""

    seconds: float | None
    rows: tuple[Row, ...]
    kv_use: float
    hit_rate: float
    waiting: int
    refusals: Mapping[str, int]
    circuits: tuple[str, ...]
    version: str
    read: tuple[ReadRow, ...] = ()


def frame(now: Scrape, before: Scrape | None = None) -> Frame:
    """Compares two readings of one server; a server that was started anew between them has no `before`."""
    if before is not None and _restarted(now, before):
        before = None
    seconds = None if before is None else now.at - before.at
    emotions = now.values("emovllm_running_requests", "emotion")
    emotions.sort(key=lambda name: (name == MIX, name == NONE, name))
    queries = _change(now, before, "vllm:prefix_cache_queries_total")
    engines = [value for _, value in now.series("vllm:kv_cache_usage_perc")]
    build = next(now.series("emovllm_build_info"), ({}, 1.0))[0]
    return Frame(
        seconds,
        tuple(_row(name, now, before, seconds) for name in emotions),
        kv_use=max(engines, default=math.nan),
        hit_rate=_change(now, before, "vllm:prefix_cache_hits_total") / queries if queries else math.nan,
        waiting=int(now.total("vllm:num_requests_waiting")),
        refusals={labels["reason"]: int(value) for labels, value in now.series("emovllm_refusals_total") if value},
        circuits=tuple(labels["name"] for labels, value in now.series("emovllm_circuit_info") if value),
        version=f"emovllm {build.get('version', '?')}, vLLM {build.get('vllm_version', '?')}",
        read=tuple(row for name in emotions if (row := _read_row(name, now, before)) is not None),
    )


def quantile(q: float, buckets: Mapping[float, float]) -> float:
    """By linear interpolation, as Prometheus' histogram_quantile. Where it is in the last bucket, the largest finite
    bound. `buckets`: cumulative counts by upper bound, ascending, those above 0. Returns: NaN without counts."""
    total = max(buckets.values(), default=0.0)
    if not total > 0:
        return math.nan
    low, below = 0.0, 0.0
    for bound, count in buckets.items():
        if count >= q * total:
            return low if math.isinf(bound) else low + (bound - low) * (q * total - below) / (count - below)
        low, below = bound, count
    return low


def _row(emotion: str, now: Scrape, before: Scrape | None, seconds: float | None) -> Row:
    requests, tokens = "emovllm_requests_total", "emovllm_generated_tokens_total"

    def rate(name: str) -> float | None:
        return _change(now, before, name, emotion=emotion) / seconds if seconds else None

    def quantiles(name: str) -> Quantiles:
        earlier = before.buckets(name, emotion=emotion) if before else {}
        counts = {bound: count - earlier.get(bound, 0.0) for bound, count in now.buckets(name, emotion=emotion).items()}
        return Quantiles(quantile(0.5, counts), quantile(0.95, counts))

    return Row(
        emotion,
        running=int(now.total("emovllm_running_requests", emotion=emotion)),
        requests=int(now.total(requests, emotion=emotion)),
        tokens=int(now.total(tokens, emotion=emotion)),
        request_rate=rate(requests),
        token_rate=rate(tokens),
        ttft=quantiles("emovllm_time_to_first_token_seconds"),
        tpot=quantiles("emovllm_time_per_output_token_seconds"),
        e2e=quantiles("emovllm_e2e_request_latency_seconds"),
    )


def _read_row(emotion: str, now: Scrape, before: Scrape | None) -> ReadRow | None:
    replies = _change(now, before, "emovllm_readout_replies_total", emotion=emotion)
    if not replies:
        return None
    probability, leads = "emovllm_readout_probability_total", "emovllm_readout_leads_total"
    means = {
        label: _change(now, before, probability, emotion=emotion, label=label) / replies
        for label in now.values(probability, "label")
    }
    leading = _change(now, before, leads, emotion=emotion) if emotion in now.values(leads, "emotion") else math.nan
    ordered = sorted(means.items(), key=lambda item: -item[1])
    return ReadRow(emotion, int(replies), leading / replies, tuple(ordered))


def _change(now: Scrape, before: Scrape | None, name: str, **where: str) -> float:
    return now.total(name, **where) - (before.total(name, **where) if before else 0.0)


def _restarted(now: Scrape, before: Scrape) -> bool:
    names = ("emovllm_requests_total", "vllm:prefix_cache_queries_total")
    return any(_change(now, before, name) < 0 for name in names)
