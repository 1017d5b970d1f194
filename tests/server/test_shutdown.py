"""How a server ends: drained, cut short, or with its engine."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import httpx
import psutil
import pytest

from support import tiny
from support.servers import WORKER_PROCESS, Server
from support.warm import COLD

pytestmark = pytest.mark.engine

# A reply that takes some seconds, and one that nobody waits for.
LONG = {
    "model": "tiny",
    "prompt": "the rain",
    "max_tokens": 500,
    "ignore_eos": True,
    "temperature": 0,
    "emotion": "fear",
}
ENDLESS = {**LONG, "max_tokens": 15_000}
CLIENTS = 3
# In seconds; other tests keep the machine busy.
PATIENCE = 180


class Streams:
    """Clients of one request, each in a thread; `lines` holds what each has got."""

    def __init__(self, url: str, request: dict[str, Any]) -> None:
        self.lines: list[list[str]] = [[] for _ in range(CLIENTS)]
        self._started = [threading.Event() for _ in range(CLIENTS)]
        self._threads = [
            threading.Thread(target=self._stream, args=(url, request, number)) for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()
        for started in self._started:
            assert started.wait(PATIENCE)

    def _stream(self, url: str, request: dict[str, Any], number: int) -> None:
        try:
            body = {**request, "stream": True}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=PATIENCE) as reply:
                for line in reply.iter_lines():
                    if line:
                        self.lines[number].append(line)
                    if len(self.lines[number]) == 3:
                        self._started[number].set()
        except httpx.HTTPError as error:
            self.lines[number].append(f"{type(error).__name__}: {error}")
        finally:
            self._started[number].set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def servers(serve: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> list[Server]:
    """Three, started at the same time; each test ends one. The last has the processes that users' servers have."""
    command = tiny.command(tmp_path_factory.mktemp("tiny"), length=16_384)
    return [serve([*command, "--shutdown-timeout", "60"]), serve(command), serve(command, {**WORKER_PROCESS, **COLD})]


class Ending:
    """A server with clients in the middle of their replies."""

    def __init__(self, server: Server, request: dict[str, Any]) -> None:
        self.server = server.wait()
        self.children = psutil.Process(server.process.pid).children(recursive=True)
        self.streams = Streams(server.url, request)

    def status(self) -> int:
        """The exit status, once no client waits and no process of the server is left."""
        self.streams.join()
        status = self.server.process.wait(PATIENCE)
        _, alive = psutil.wait_procs(self.children, timeout=PATIENCE)
        assert not alive, alive
        return status

    def check_none_looks_whole(self) -> None:
        for lines in self.streams.lines:
            assert not any('"finish_reason":"length"' in line for line in lines), lines[-3:]


def test_a_terminated_server_ends_its_replies_where_it_is_given_time(servers: list[Server]) -> None:
    reply = httpx.post(f"{servers[0].wait().url}/v1/completions", json=LONG, timeout=PATIENCE).json()
    ending = Ending(servers[0], LONG)
    os.kill(ending.server.process.pid, signal.SIGTERM)
    assert ending.status() == 0
    for lines in ending.streams.lines:
        assert lines[-1] == "data: [DONE]", lines[-1]
        events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert "".join(event["choices"][0]["text"] for event in events) == reply["choices"][0]["text"]


def test_a_terminated_server_ends_at_once_by_default(servers: list[Server]) -> None:
    ending = Ending(servers[1], ENDLESS)
    os.kill(ending.server.process.pid, signal.SIGTERM)
    assert ending.status() == 0
    ending.check_none_looks_whole()


def test_a_server_whose_worker_is_killed_ends_with_it_and_says_so(servers: list[Server]) -> None:
    ending = Ending(servers[2], ENDLESS)
    # The engine ends for want of its worker, and the server for want of its engine.
    names = {child.name(): child for child in ending.children}
    assert any(name.startswith("VLLM::EngineCor") for name in names)
    next(child for name, child in names.items() if name.startswith("VLLM::Worker")).kill()
    assert ending.status() == 1
    ending.check_none_looks_whole()
    assert "emovllm: the engine ended unexpectedly, and the server with it" in ending.server.log.read_text()
