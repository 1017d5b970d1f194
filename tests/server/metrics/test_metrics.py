"""`/metrics` of real servers: exact counts for known requests, with one API server process and with two."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.multiprocess import MultiProcessCollector
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from emovllm.cli import main
from emovllm_server.metrics.collectors import FINISH_REASONS, REFUSALS
from emovllm_server.top.scrape import Scrape, address, scrape
from support.bodies import body
from support.circuits import SIX, random_circuit
from support.dashboard import DASHBOARD, missing, queries
from support.models import tiny_model
from support.servers import BIN, Server

pytestmark = pytest.mark.engine

COMPLETIONS = "/v1/completions"
COUNTS: tuple[str, ...] = ("emovllm_requests_total", "emovllm_generated_tokens_total", "emovllm_emotion_strength_count")
COUNTS += ("emovllm_readout_replies_total",)
TIMES = ("time_to_first_token_seconds", "time_per_output_token_seconds", "e2e_request_latency_seconds")
COUNTS += tuple(f"emovllm_{name}_count" for name in TIMES)


def settled(server: Server) -> Scrape:
    """A reading once no request runs: an aborted one ends a moment after its client left."""
    end = time.monotonic() + 30
    while True:
        found = scrape(address(server.url))
        if found.total("emovllm_running_requests") == 0:
            return found
        assert time.monotonic() < end, "requests are counted as running that are not"
        time.sleep(0.1)


@contextmanager
def counting(server: Server) -> Iterator[dict[tuple[str, ...], float]]:
    """What the counters rose by, under (name without prefix, label values in the order of their labels' names)."""
    before = settled(server)
    changes: dict[tuple[str, ...], float] = {}
    yield changes
    after = settled(server)
    for name in COUNTS:
        for labels, value in after.series(name):
            change = value - before.total(name, **labels)
            if change:
                changes[name.removeprefix("emovllm_"), *(labels[key] for key in sorted(labels))] = change


def complete(server: Server, **fields: Any) -> dict[str, Any]:
    fields = {"max_tokens": 8, "ignore_eos": True, **fields}
    reply = httpx.post(f"{server.url}{COMPLETIONS}", json=body(COMPLETIONS, **fields), timeout=120)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def leave_after_the_first_token(server: Server, **fields: Any) -> None:
    asked = body(COMPLETIONS, max_tokens=900, ignore_eos=True, stream=True, **fields)
    with httpx.stream("POST", f"{server.url}{COMPLETIONS}", json=asked, timeout=120) as reply:
        next(reply.iter_lines())


def timed(emotion: str, *counts: int) -> dict[tuple[str, ...], float]:
    return {(f"{name}_count", emotion): count for name, count in zip(TIMES, counts, strict=True) if count}


def test_requests_tokens_times_and_strengths_are_counted_exactly(server: Server) -> None:
    with counting(server) as changes:
        complete(server)
        complete(server, emotion="anger", emotion_strength=0.5)
        complete(server, emotion="fear", n=2, temperature=1.0, max_tokens=5)
        complete(server, emotion={"anger": 0.5, "fear": 0.25})
        complete(server, emotion="anger", emotion_strength=0)
        complete(server, emotion="sadness", max_tokens=1)
    assert changes == {
        ("requests_total", "none", "length"): 2,
        ("requests_total", "anger", "length"): 1,
        ("requests_total", "fear", "length"): 2,
        ("requests_total", "mix", "length"): 1,
        ("requests_total", "sadness", "length"): 1,
        ("generated_tokens_total", "none", "length"): 16,
        ("generated_tokens_total", "anger", "length"): 8,
        ("generated_tokens_total", "fear", "length"): 10,
        ("generated_tokens_total", "mix", "length"): 8,
        ("generated_tokens_total", "sadness", "length"): 1,
        ("emotion_strength_count", "anger"): 2,
        ("emotion_strength_count", "fear"): 3,
        ("emotion_strength_count", "sadness"): 1,
        **timed("none", 2, 2, 2),
        **timed("anger", 1, 1, 1),
        **timed("fear", 2, 2, 2),
        **timed("mix", 1, 1, 1),
        **timed("sadness", 1, 0, 1),
    }


def test_replies_that_are_read_are_counted_as_they_were_told(tiny_server: Server) -> None:
    before = settled(tiny_server)
    asked: dict[str, Any] = {"model": "tiny", "emotion_readout": "reply"}
    told = [complete(tiny_server, **asked, emotion=name) for name in ("anger", "anger", None, {"anger": 1, "fear": 1})]
    complete(tiny_server, model="tiny", emotion="anger")
    after = settled(tiny_server)
    read = [choice["emotion_readout"]["reply"] for reply in told for choice in reply["choices"]]

    def change(name: str, **labels: str) -> float:
        name = f"emovllm_readout_{name}_total"
        return after.total(name, **labels) - before.total(name, **labels)

    for emotion, replies in (("anger", read[:2]), ("none", read[2:3]), ("mix", read[3:])):
        assert change("replies", emotion=emotion) == len(replies)
        for label in replies[0]:
            assert change("probability", emotion=emotion, label=label) == pytest.approx(
                sum(reply[label] for reply in replies)
            )
    leads = sum(
        max((value, label) for label, value in reply.items() if label != "neutral")[1] == "anger" for reply in read[:2]
    )
    assert change("leads") == change("leads", emotion="anger") == leads


def test_a_client_that_leaves_counts_as_aborted_and_one_that_stays_does_not(server: Server) -> None:
    with counting(server) as changes:
        leave_after_the_first_token(server, emotion="disgust")
        asked = body(COMPLETIONS, stream=True, emotion="surprise", stop=["e", "a"])
        with httpx.stream("POST", f"{server.url}{COMPLETIONS}", json=asked, timeout=120) as reply:
            assert sum(line.startswith("data: {") for line in reply.iter_lines()) > 0
    assert changes["requests_total", "disgust", "abort"] == 1
    assert 1 <= changes["generated_tokens_total", "disgust", "abort"] < 900
    assert ("e2e_request_latency_seconds_count", "disgust") not in changes
    assert changes["requests_total", "surprise", "stop"] == 1
    assert sum(value for key, value in changes.items() if key[0] == "requests_total") == 2


def test_a_running_request_is_seen_running(server: Server) -> None:
    settled(server)
    asked = body(COMPLETIONS, max_tokens=900, ignore_eos=True, stream=True, emotion="happiness")
    with httpx.stream("POST", f"{server.url}{COMPLETIONS}", json=asked, timeout=120) as reply:
        lines = reply.iter_lines()  # kept: httpx closes the connection with the iterator
        next(lines)
        running = dict(_running(scrape(address(server.url))))
    assert running == {"happiness": 1}
    settled(server)


def _running(found: Scrape) -> Iterator[tuple[str, float]]:
    return ((labels["emotion"], value) for labels, value in found.series("emovllm_running_requests") if value)


def test_the_circuit_and_the_versions_are_told(server: Server) -> None:
    found = scrape(address(server.url))
    ((labels, value),) = found.series("emovllm_circuit_info")
    emotions = httpx.get(f"{server.url}/v1/emotions", timeout=60).json()
    assert value == 1
    [circuit] = emotions["circuits"]
    told = [labels[name] for name in ("name", "digest", "model")]
    assert told == [circuit[name] for name in ("id", "digest", "model")]
    assert labels["emotions"].split(",") == [emotion["id"] for emotion in emotions["data"]]


def test_refusals_are_counted_by_reason(server: Server) -> None:
    def refusals() -> dict[str, float]:
        found = scrape(address(server.url)).series("emovllm_refusals_total")
        return {labels["reason"]: value for labels, value in found}

    before = refusals()
    asked: list[tuple[str, dict[str, Any]]] = [
        (COMPLETIONS, body(COMPLETIONS, emotion="joyful")),
        (COMPLETIONS, body(COMPLETIONS, emotion="joyful", stream=True)),
        (COMPLETIONS, body(COMPLETIONS, emotion="anger", emotion_strength=99)),
        (COMPLETIONS, body(COMPLETIONS, emotion=["anger"])),
        (COMPLETIONS, body(COMPLETIONS, model="SmolLM2-135M-Instruct:joyful")),
        ("/tokenize", {"model": "SmolLM2-135M-Instruct", "prompt": "a", "emotion": "anger"}),
    ]
    for route, request in asked:
        assert httpx.post(f"{server.url}{route}", json=request, timeout=60).is_client_error
    after = refusals()
    risen = {reason: value - before[reason] for reason, value in after.items() if value != before[reason]}
    assert risen == {"unknown_emotion": 3, "over_maximum": 1, "bad_value": 1, "wrong_route": 1}


def test_labels_are_bounded(server: Server) -> None:
    found = scrape(address(server.url))
    for name in found.samples:
        if name.startswith("emovllm_"):
            assert set(found.values(name, "emotion")) <= {*SIX, "none", "mix"}, name
            assert set(found.values(name, "finish_reason")) <= set(FINISH_REASONS), name
            assert set(found.values(name, "reason")) <= set(REFUSALS), name


def test_the_dashboard_asks_for_what_a_server_that_reads_tells(tiny_server: Server) -> None:
    found = scrape(address(tiny_server.url))
    asked = [expression for _, expression in queries(DASHBOARD)]
    assert len(asked) > 10
    assert {expression: lack for expression in asked if (lack := missing(expression, found))} == {}
    assert missing("rate(emovllm_gone[1m])", found) == ["emovllm_gone"]
    assert missing('sum by (colour) (emovllm_refusals_total{reason="other"})', found) == ["colour"]


def test_a_server_that_reads_tells_all_that_the_dashboard_asks(server: Server) -> None:
    found = scrape(address(server.url))
    lacking = [expression for _, expression in queries(DASHBOARD) if missing(expression, found)]
    # It has no guards.
    assert all("emovllm_guard_total" in expression for expression in lacking)


def test_top_shows_the_server(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    settled(server)
    assert main(["top", server.url, "--once"]) == 0
    text = capsys.readouterr().out
    for name in (*SIX, "none", "mix", "KV cache used 0.0%"):
        assert name in text


@pytest.fixture(scope="module")
def two_processes(
    serve: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, int]]:
    """A tiny model behind two API server processes on one port, and the number of requests until both answered."""
    folder = tmp_path_factory.mktemp("two")
    model = tiny_model(folder / "model")
    words = {word: number for number, word in enumerate(["<s>", "</s>", "The", "rain", *map(str, range(124))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(model)
    circuit = random_circuit(model, folder / "circuit", probe=True)
    command = [str(BIN / "emovllm"), "serve", model, "--circuit", str(circuit), "--readout", "--api-server-count", "2"]
    command += ["--served-model-name", "SmolLM2-135M-Instruct", "--enforce-eager", "--max-model-len", "128"]
    command += ["--dtype", "float32"]
    server = serve(command).wait()
    # It answers as soon as one of the two does: the other's connections come when it listens, too.
    until, asked = time.monotonic() + 60, 0
    while len([count for count in counted_by_process(server) if count]) < 2 and time.monotonic() < until:
        complete(server)
        asked += 1
    yield server, asked
    server.close()


def test_two_api_server_processes_tell_the_sum_of_what_both_counted(
    two_processes: tuple[Server, int],
) -> None:
    server, asked_before = two_processes
    # Each connection is a client of its own: the system spreads them over the processes.
    names = [*SIX, None] * 8
    with counting(server) as changes, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: complete(server, emotion=name, emotion_readout="reply"), names))
    expected: dict[tuple[str, ...], float] = {}
    for name in (*SIX, "none"):
        expected |= {("requests_total", name, "length"): 8, ("generated_tokens_total", name, "length"): 64}
        expected |= {("readout_replies_total", name): 8, **timed(name, 8, 8, 8)}
        if name != "none":
            expected["emotion_strength_count", name] = 8
    assert changes == expected
    # Whichever of the two is asked, it answers for both.
    counted = [count for count in counted_by_process(server) if count]
    assert len(counted) == 2
    assert sum(counted) == asked_before + len(names)
    readings = [settled(server) for _ in range(8)]
    assert {reading.total("emovllm_requests_total") for reading in readings} == {sum(counted)}
    assert {reading.total("vllm:request_success_total") for reading in readings} == {sum(counted)}
    assert {reading.total("emovllm_circuit_info") for reading in readings} == {1}
    # The probabilities of a reply add up to 1, and so do its replies' sums.
    probabilities = [reading.total("emovllm_readout_probability_total") for reading in readings]
    assert probabilities == pytest.approx([len(names)] * len(readings), abs=1e-2)


def counted_by_process(server: Server) -> list[float]:
    """The requests that each of a server's processes has counted itself, read from its own file."""
    variable = b"PROMETHEUS_MULTIPROC_DIR="
    folders = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(process.name)) == server.process.pid:
                settings = (process / "environ").read_bytes().split(b"\0")
                folders |= {entry.removeprefix(variable).decode() for entry in settings if entry.startswith(variable)}
    (folder,) = folders
    counts = []
    for file in Path(folder).glob("counter_*.db"):
        families = MultiProcessCollector.merge([str(file)])
        samples = [sample for family in families for sample in family.samples]
        counts.append(sum(sample.value for sample in samples if sample.name == "emovllm_requests_total"))
    return counts
