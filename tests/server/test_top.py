"""`emovllm top`, on a small server of the test's own."""

from __future__ import annotations

import io
import math
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from rich.console import Console

from emovllm.cli import main
from emovllm.emotion import Wire
from emovllm.readout import Reading, Readout
from emovllm_server.metrics.collectors import Metrics
from emovllm_server.top import command
from emovllm_server.top.frame import Frame, Quantiles, Row, frame, quantile
from emovllm_server.top.scrape import Scrape, address, parse, scrape
from emovllm_server.top.view import view

WIRE = Wire("d", {"anger": 1.0}, "generation")


class Site:
    """Serves `text` under /metrics, or `status` where it is not 200."""

    def __init__(self) -> None:
        self.text, self.status, self.requests = "", 200, 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests += 1
                self.send_response(site.status if self.path == "/metrics" else 404)
                self.end_headers()
                self.wfile.write(site.text.encode())

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


class Server:
    """The metrics of a server under way: one angry request runs, ten have ended."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.metrics.build.labels("1.2", "0.32.0").set(1)
        self.metrics.circuit.labels("main", "d", "a/model", "anger").set(1)
        self.metrics.circuit.labels("old", "e", "a/model", "anger").set(0)
        self.metrics.running.labels("anger")
        labels = {"model_name": "m", "engine": "0"}
        for name, value in (("prefix_cache_queries", 400), ("prefix_cache_hits", 100)):
            Counter(f"vllm:{name}", "", list(labels), registry=self.registry).labels(**labels).inc(value)
        for name, value in (("kv_cache_usage_perc", 0.125), ("num_requests_waiting", 3)):
            Gauge(f"vllm:{name}", "", list(labels), registry=self.registry).labels(**labels).set(value)
        self.metrics.refusals.labels("over_maximum").inc(2)
        self.metrics.started(WIRE)
        for _ in range(10):
            self.end(ttft=0.05)

    def end(self, ttft: float, tokens: int = 21) -> None:
        emotion = self.metrics.started(WIRE)
        self.metrics.timed(emotion, ttft, 0.4, tokens)
        self.metrics.ended(emotion, "stop", tokens, 1.0)

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def scrape(self, at: float) -> Scrape:
        return Scrape(at, parse(self.text()).samples)


def read(server: Server, emotion: str, *probabilities: float) -> None:
    logits = np.log(np.array([probabilities], np.float32))
    server.metrics.read(emotion, Readout(Reading("p", 0, ("anger", "calm", "neutral")), logits))


def row(found: Frame, emotion: str):  # type: ignore[no-untyped-def]
    return next(row for row in found.rows if row.emotion == emotion)


def test_one_reading_gives_the_figures_since_the_servers_start() -> None:
    found = frame(Server().scrape(at=5.0))
    assert [row.emotion for row in found.rows] == ["anger", "none", "mix"]
    angry = row(found, "anger")
    assert (angry.running, angry.requests, angry.tokens) == (1, 10, 210)
    assert angry.request_rate is None
    # All of its buckets' counts lie between 40 and 60 ms, and between 10 and 25.
    assert (angry.ttft.median, angry.ttft.p95) == pytest.approx((0.05, 0.059))
    assert angry.tpot.median == pytest.approx(0.0175)
    assert math.isnan(row(found, "none").ttft.median)
    assert (found.kv_use, found.hit_rate, found.waiting) == (0.125, 0.25, 3)
    assert found.refusals == {"over_maximum": 2}
    assert found.circuits == ("main",)


def test_two_readings_give_what_happened_between_them() -> None:
    server = Server()
    before = server.scrape(at=5.0)
    for _ in range(4):
        server.end(ttft=0.9, tokens=5)
    found = frame(server.scrape(at=7.0), before)
    angry = row(found, "anger")
    assert found.seconds == 2.0
    assert (angry.requests, angry.tokens) == (14, 230)
    assert (angry.request_rate, angry.token_rate) == (2.0, 10.0)
    assert 0.75 < angry.ttft.median < 1.0
    assert row(found, "none").request_rate == 0.0
    assert math.isnan(found.hit_rate)


def test_what_replies_read_as_is_shown_where_any_were_read() -> None:
    server = Server()
    assert frame(server.scrape(at=5.0)).read == ()
    server.metrics.reads(("anger", "calm", "neutral"))
    assert frame(server.scrape(at=5.0)).read == ()
    read(server, "anger", 0.2, 0.5, 0.3)
    before = server.scrape(at=5.0)
    read(server, "anger", 0.5, 0.1, 0.4)
    read(server, "anger", 0.7, 0.1, 0.2)
    read(server, "none", 0.2, 0.3, 0.5)
    angry, plain = frame(server.scrape(at=7.0), before).read
    assert (angry.emotion, angry.replies, angry.leads) == ("anger", 2, 1.0)
    assert dict(angry.means) == pytest.approx({"anger": 0.6, "neutral": 0.3, "calm": 0.1})
    assert [label for label, _ in plain.means] == ["neutral", "calm", "anger"]
    assert math.isnan(plain.leads)
    console = Console(width=80, file=io.StringIO())
    console.print(view(frame(server.scrape(at=7.0)), "http://h:1"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "66.7% anger 47%, neutral 30%, calm 23%" in text


def test_a_server_started_anew_has_no_earlier_reading() -> None:
    busy = Server()
    busy.end(ttft=0.1)
    found = frame(Server().scrape(at=9.0), busy.scrape(at=5.0))
    assert found.seconds is None
    assert row(found, "anger").request_rate is None


@pytest.mark.parametrize(
    ("q", "buckets", "expected"),
    [
        (0.5, {1.0: 10, 2.0: 10, math.inf: 10}, 0.5),
        (0.75, {1.0: 10, 2.0: 20, math.inf: 20}, 1.5),
        (0.95, {1.0: 0, 2.0: 20, math.inf: 20}, 1.95),
        (0.95, {1.0: 10, 2.0: 10, math.inf: 20}, 2.0),
        (0.5, {1.0: 0, math.inf: 0}, math.nan),
        (0.5, {}, math.nan),
    ],
)
def test_quantiles_are_those_of_prometheus(q: float, buckets: dict[float, float], expected: float) -> None:
    assert quantile(q, buckets) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    "url", ["h:1", "http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "http://h:1/metrics"]
)
def test_a_server_may_be_given_in_several_ways(url: str) -> None:
    assert address(url) == "http://h:1/metrics"


def test_once_prints_one_frame(site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    site.text = Server().text()
    assert main(["top", site.url, "--once"]) == 0
    text = capsys.readouterr().out
    assert site.requests == 1
    parts = ["anger", "50/59", "emovllm 1.2, vLLM 0.32.0", "circuits: main", "since the server's start"]
    parts += ["KV cache used 12.5%", "prefix cache hits 25.0%", "waiting 3", "start: over_maximum 2"]
    for part in parts:
        assert part in text, part


def test_a_proxy_is_not_asked_for_this_machine(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "http_proxy": "http://127.0.0.1:9", "NO_PROXY": "example.org"})
    monkeypatch.delenv("no_proxy", raising=False)
    # urllib reads its proxies once.
    monkeypatch.setattr(urllib.request, "_opener", None)
    site.text = Server().text()
    assert main(["top", site.url, "--once"]) == 0
    assert main(["top", site.url.replace("127.0.0.1", "localhost"), "--once"]) == 0
    assert site.requests == 2


def test_names_and_figures_stay_whole_in_a_narrow_terminal() -> None:
    slow, step = Quantiles(45.678, 123.456), Quantiles(0.4567, 0.9876)
    rows = tuple(Row(name, 500, 12345, 1234567, 123.4, 9876.5, slow, step, slow) for name in ("happiness", "mix"))
    console = Console(width=80, file=io.StringIO())
    console.print(view(Frame(2.0, rows, 0.5, 0.5, 3, {}, ("main",), "emovllm 1.2"), "http://h:1"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for whole in ("happiness", "1234567", "9876.5", "45678/123456", "457/988", "45.7/123"):
        assert whole in text, text


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("", 503, "the server answers 503"),
        ("# nothing\nvllm:num_requests_waiting 1\n", 200, "has no metrics of emovllm"),
        ("<html>\n", 200, "not Prometheus' text format"),
    ],
)
def test_what_is_no_server_of_ours_is_told_in_a_line(
    site: Site, text: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site.text, site.status = text, status
    assert main(["top", site.url]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no host/", "http://127.0.0.1:notaport"])
def test_where_no_server_is_it_says_so_in_a_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", url, "--once"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"emovllm top: {url.rstrip('/')}/metrics: no server answers there (")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("interval", ["0", "nan", "-1", "soon"])
def test_an_interval_that_is_none_is_refused(interval: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--interval", interval]) == 2
    assert "--interval" in capsys.readouterr().err


def watched(site: Site, server: Server, monkeypatch: pytest.MonkeyPatch, steps: list[Callable[[], None]]) -> list[str]:
    """The frames' text: one more after each step, then Ctrl-C."""
    frames: list[str] = []
    pending = iter(steps)

    def sleep(seconds: float) -> None:
        step = next(pending, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    def shown(*args: object) -> object:
        console = Console(file=io.StringIO(), width=140)
        console.print(view(*args))
        frames.append(console.file.getvalue())  # type: ignore[attr-defined]
        return view(*args)

    view = command.view
    monkeypatch.setattr(command, "view", shown)
    monkeypatch.setattr(command.time, "sleep", sleep)
    site.text = server.text()
    assert command.top(site.url, once=False, interval=1, window=30, console=Console(file=io.StringIO())) == 0
    return frames


def test_it_goes_on_where_a_server_does_not_answer_and_ends_at_ctrl_c(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()

    def work() -> None:
        server.end(ttft=0.1)
        site.text = server.text()

    def fail() -> None:
        site.status = 500

    def recover() -> None:
        site.status = 200

    frames = watched(site, server, monkeypatch, [work, fail, recover])
    assert ["over the last" in text for text in frames] == [False, True, True, True]
    assert ["answers 500" in text for text in frames] == [False, False, True, False]


def test_readings_are_kept_for_the_window(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    from collections import deque

    site.text = Server().text()
    clock = iter([0.0, 10.0, 20.0, 31.0, 45.0])
    monkeypatch.setattr("emovllm_server.top.scrape.time.monotonic", lambda: next(clock))
    readings = deque([scrape(address(site.url))])
    for expected in ([0, 10], [0, 10, 20], [0, 10, 20, 31], [10, 20, 31, 45]):
        assert command._read(address(site.url), readings, window=30) is None
        assert [reading.at for reading in readings] == expected
