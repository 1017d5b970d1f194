"""Concurrent clients that stream replies and check each of them."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from benchmarks.load.asks import Ask

_KEPT = 20  # examples of each failure


@dataclass(slots=True)
class Tally:
    """What came of the requests: `right`, `wrong`, `lost` (refused, broken off, or without an end), and `left`, whose
    client went away in the middle."""

    counts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)  # of right replies
    characters: int = 0
    first_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def fail(self, what: str, ask: Ask, told: str) -> None:
        self.counts[what] += 1
        if sum(told.startswith(what) for told in self.failures) < _KEPT:
            fields = {name: value for name, value in ask.body.items() if name.startswith("emotion")}
            self.failures.append(f"{what}: {ask.route} {json.dumps(fields)}: {told}")


class Clients:
    """`number` clients, each asking one request after another until told to stop.

    Args:
        leaving: the share of requests whose client disconnects in the middle of the reply.
    """

    def __init__(self, url: str, asks: Sequence[Ask], number: int, leaving: float, seed: int) -> None:
        self.tally = Tally()
        self._url = url
        self._asks = asks
        self._number = number
        self._leaving = leaving
        self._seed = seed
        self._stopped = False

    async def run(self) -> None:
        """Until stopped, and until each request that was under way has its reply."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=300, limits=limits) as client:
            await asyncio.gather(*(self._client(client, number) for number in range(self._number)))

    def stop(self) -> None:
        self._stopped = True

    async def _client(self, client: httpx.AsyncClient, number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        while not self._stopped:
            ask = rng.choice(self._asks)
            leave_after = rng.randint(1, 8) if rng.random() < self._leaving else None
            try:
                await self._ask(client, ask, leave_after)
            except (httpx.HTTPError, ValueError, LookupError) as error:
                self.tally.fail("lost", ask, f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.1)

    async def _ask(self, client: httpx.AsyncClient, ask: Ask, leave_after: int | None) -> None:
        tally = self.tally
        start = time.monotonic()
        first = None
        text, ended = "", False
        async with client.stream("POST", ask.route, json=ask.body) as reply:
            if reply.status_code != 200:
                tally.fail("lost", ask, f"status {reply.status_code}: {(await reply.aread())[:200]!r}")
                return
            pieces = 0
            async for line in reply.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    ended = True
                    break
                piece = _text(line)
                first = first or (time.monotonic() if piece else None)
                text += piece
                pieces += 1
                if pieces == leave_after:
                    tally.counts["left"] += 1
                    if not ask.expected.startswith(text):
                        tally.fail("wrong", ask, f"got {text!r}, expected {ask.expected!r}")
                    return
        tally.total_s.append(time.monotonic() - start)
        tally.first_s.append((first or start) - start)
        if not ended:
            tally.fail("lost", ask, f"the stream broke off after {text!r}")
        elif text != ask.expected:
            tally.fail("wrong", ask, f"got {text!r}, expected {ask.expected!r}")
        else:
            tally.counts["right"] += 1
            tally.kinds[ask.kind] += 1
            tally.characters += len(text)


def _text(line: str) -> str:
    """The text of a server-sent event. Raises: ValueError where it tells an error."""
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        raise ValueError(json.dumps(event["error"]))
    choices = event["choices"]
    if not choices:
        return ""
    return str((choices[0]["delta"].get("content") if "delta" in choices[0] else choices[0]["text"]) or "")
