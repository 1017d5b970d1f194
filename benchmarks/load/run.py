"""One load run: the replies that are expected, then all clients at once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.load import asks
from benchmarks.load.clients import Clients
from benchmarks.load.memory import Memory
from benchmarks.load.report import Result
from emovllm_server.bench import machine


@dataclass(frozen=True, slots=True)
class Settings:
    clients: int
    seconds: float
    warmup_s: float  # memory before is not counted as growth
    asks: int  # different requests
    tokens: int  # of each reply
    leaving: float  # share of requests whose client goes away
    seed: int


def run(url: str, pid: int, settings: Settings) -> Result:
    """Loads the server at `url`, whose first process is `pid`. Raises: asks.NoReply."""
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        emotions = {
            emotion["id"]: emotion["max_strength"]
            for emotion in httpx.get(f"{url}/v1/emotions", timeout=60).raise_for_status().json()["data"]
        }
        model = httpx.get(f"{url}/v1/models", timeout=60).raise_for_status().json()["data"][0]["id"]
        made = asks.make(model, emotions, settings.asks, settings.tokens, settings.seed)
        expected = asks.expect(url, made, lambda each: progress.track(each, description="replies, one at a time"))
        clients = Clients(url, expected, settings.clients, settings.leaving, settings.seed)
        memory = Memory(pid)
        seconds, timeline = asyncio.run(_load(clients, memory, settings, progress))
    running, waiting = settled_gauges(url)
    return Result(
        {**asdict(settings), "told_apart": len(expected)},
        dict(machine.describe()),
        machine.versions(),
        len({ask.expected for ask in expected}),
        seconds,
        clients.tally,
        memory,
        timeline,
        running,
        waiting,
    )


async def _load(
    clients: Clients, memory: Memory, settings: Settings, progress: Progress
) -> tuple[float, list[tuple[float, int]]]:
    start = time.monotonic()
    bar = progress.add_task("", total=round(settings.seconds))
    every = min(2.0, settings.seconds / 60)
    timeline: list[tuple[float, int]] = []
    counts = clients.tally.counts

    def watch() -> None:
        """In a thread, for the clients keep the loop busy."""
        while (now := time.monotonic() - start) < settings.seconds:
            memory.sample(now)
            timeline.append((round(now, 2), counts.total()))
            told = ", ".join(f"{counts[name]} {name}" for name in ("right", "wrong", "lost", "left"))
            progress.update(bar, completed=round(now), description=told)
            time.sleep(every)
        clients.stop()

    await asyncio.gather(clients.run(), asyncio.to_thread(watch))
    return time.monotonic() - start, timeline


def settled_gauges(url: str, patience_s: float = 30) -> tuple[float, float]:
    """vLLM's requests running and waiting; those whose clients left may take a step to end."""
    end = time.monotonic() + patience_s
    while True:
        running, waiting = gauges(httpx.get(f"{url}/metrics", timeout=60).text)
        if running + waiting == 0 or time.monotonic() > end:
            return running, waiting
        time.sleep(0.5)


def gauges(metrics: str) -> tuple[float, float]:
    """vLLM's gauges of running and waiting requests, summed over engines."""
    totals = {"vllm:num_requests_running": 0.0, "vllm:num_requests_waiting": 0.0}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name in totals:
                totals[sample.name] += sample.value
    return totals["vllm:num_requests_running"], totals["vllm:num_requests_waiting"]
