"""The load run in small: many clients at once, each with its own emotion, some of whom go away."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.load import asks
from benchmarks.load.clients import Clients
from benchmarks.load.memory import slope
from benchmarks.load.run import Settings, gauges, run, settled_gauges
from support.servers import Server

SMALL = Settings(clients=60, seconds=12, warmup_s=2, asks=60, tokens=24, leaving=0.1, seed=1)


@pytest.mark.engine
def test_no_reply_is_wrong_or_lost_among_many_clients(tiny_server: Server, tmp_path: Path) -> None:
    result = run(tiny_server.url, tiny_server.process.pid, SMALL)
    counts = result.tally.counts
    assert (counts["wrong"], counts["lost"]) == (0, 0), result.tally.failures
    assert counts["right"] > SMALL.clients
    assert counts["left"] > 0
    # Each kind was among them, and one's reply is not another's.
    assert set(result.tally.kinds) == {"plain", "emotion", "blend"}
    assert result.distinct_replies > SMALL.asks / 2
    # Requests whose client went away are not computed further.
    assert (result.running_after, result.waiting_after) == (0, 0)
    result.write(tmp_path)
    told = json.loads((tmp_path / "load.json").read_text())
    assert told["right"] == counts["right"]
    assert "| wrong replies | 0 |" in (tmp_path / "load.md").read_text()
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.engine
def test_a_wrong_reply_would_be_noticed(tiny_server: Server) -> None:
    emotions = {"anger": 2.0, "fear": 2.0}
    true = asks.expect(tiny_server.url, asks.make("tiny", emotions, 9, 8, seed=3))
    # Each request with the reply to another, and one that the server refuses.
    swapped = [asks.Ask(ask.route, ask.body, ask.kind, other.expected) for ask, other in itertools.pairwise(true)]
    refused = asks.Ask(true[0].route, {**true[0].body, "emotion": "joyful"}, "emotion", true[0].expected)
    clients = Clients(tiny_server.url, [*swapped, refused], 8, 0.0, seed=0)

    async def a_while() -> None:
        running = asyncio.create_task(clients.run())
        await asyncio.sleep(2)
        clients.stop()
        await running

    asyncio.run(a_while())
    assert clients.tally.counts["wrong"] > 0
    assert clients.tally.counts["lost"] > 0
    assert any("joyful" in failure and "status 400" in failure for failure in clients.tally.failures)


@pytest.mark.engine
def test_a_client_that_disconnects_frees_its_request(tiny_server: Server) -> None:
    body = {
        "model": "tiny",
        "prompt": "the rain",
        "max_tokens": 200,
        "ignore_eos": True,
        "stream": True,
        "emotion": "fear",
    }
    with httpx.Client(base_url=tiny_server.url, timeout=60) as client:
        streams = [client.build_request("POST", "/v1/completions", json=body) for _ in range(8)]
        running = 0.0
        # On an idle machine the tiny model may have ended its replies before the gauge is read.
        for _ in range(20):
            replies = [client.send(request, stream=True) for request in streams]
            next(replies[-1].iter_lines())
            running = gauges(client.get("/metrics").text)[0]
            for reply in replies:
                reply.close()
            if running:
                break
        assert running > 0
    assert settled_gauges(tiny_server.url) == (0, 0)


def test_growth_is_told_from_noise() -> None:
    random = np.random.default_rng(1)
    seconds = np.arange(0, 480, 2.0)
    noise = np.convolve(random.standard_normal(len(seconds) + 7), np.ones(8) / 8, "valid")
    flat = slope(list(seconds), list(900 + noise), after=60)
    assert flat.low < 0 < flat.high
    grows = slope(list(seconds), list(900 + noise + seconds / 60 * 3), after=60)
    assert grows.low < 3 < grows.high
    assert grows.low > 1
    # What happens during warm-up is no growth.
    warming = np.where(seconds < 60, seconds * 10, 600)
    assert slope(list(seconds), list(warming + noise), after=60).low < 0


def test_requests_are_of_all_kinds_and_repeatable() -> None:
    made = asks.make("m", {"anger": 2.0, "fear": 3.0}, 90, 16, seed=5)
    assert made == asks.make("m", {"anger": 2.0, "fear": 3.0}, 90, 16, seed=5)
    assert len({json.dumps([ask.route, ask.body], sort_keys=True) for ask in made}) == 90
    assert {ask.kind for ask in made} == {"plain", "emotion", "blend"}
    assert {ask.route for ask in made} == {"/v1/chat/completions", "/v1/completions"}
    assert all("emotion" not in asks.plain(ask).body and asks.plain(ask).body["max_tokens"] == 16 for ask in made)
