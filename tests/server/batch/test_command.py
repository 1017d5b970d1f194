"""`emovllm run-batch`: replies as the server's, each line's emotion its own, and an interrupted run goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from emovllm.cli import main
from emovllm.engine.settings import Carried, Settings
from emovllm.errors import OptionsError
from emovllm.readout import Reading
from emovllm_server.arguments import parse
from emovllm_server.batch import command
from emovllm_server.batch.answers import answer
from emovllm_server.batch.engine import engine_identity
from emovllm_server.batch.files import Replies
from support.circuits import SIX
from support.servers import ONE_PROCESS, Server

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


PLAIN = {"model": "tiny", "temperature": 0}


def chat(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "the rain at the door"}]
    return {**PLAIN, "messages": messages, "max_tokens": 48, "ignore_eos": True, **fields}


def line(custom_id: str, url: str, body: Any, **changes: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body, **changes})


GOOD = {
    "plain": (CHAT, chat()),
    "null": (CHAT, chat(emotion=None)),
    **{name: (CHAT, chat(emotion=name)) for name in SIX},
    **{f"{name} {part}": (CHAT, chat(emotion=name, emotion_strength=part)) for name in SIX for part in (0.35, 1.5)},
    "blend": (CHAT, chat(emotion={"anger": 0.6, "fear": -0.4}, emotion_scope="all")),
    "xargs": (CHAT, chat(vllm_xargs={"emotion": "anger"})),
    "completion": (COMPLETIONS, {**PLAIN, "prompt": "the rain", "max_tokens": 24, "emotion": "fear"}),
    "without version": ("/chat/completions", chat(emotion="anger")),
    "read": (CHAT, chat(emotion="anger", emotion_readout="tokens")),
    "read plain": (COMPLETIONS, {**PLAIN, "prompt": "the rain", "max_tokens": 24, "emotion_readout": "reply"}),
    "read response": (RESPONSES, {**PLAIN, "input": "rain", "max_output_tokens": 24, "emotion_readout": "tokens"}),
    "response": (RESPONSES, {**PLAIN, "input": "rain", "max_output_tokens": 24, "emotion": "fear"}),
}
BAD = {
    "unknown": (line("unknown", CHAT, chat(emotion="joyful")), "emotion", "unknown emotion 'joyful'"),
    "strong": (line("strong", CHAT, chat(emotion="anger", emotion_strength=99)), "emotion_strength", "maximum"),
    "nan": (line("nan", CHAT, chat(emotion="anger", emotion_strength=float("nan"))), "emotion_strength", "finite"),
    "stream": (line("stream", CHAT, chat(stream=True)), "stream", "cannot be used in a batch"),
    "elsewhere": (line("elsewhere", "/v1/messages", chat(emotion="anger")), "url", "must be one of /v1/chat"),
    "path": (line("path", "http://host/v1/chat/completions", chat()), "url", "must be one of /v1/chat"),
    "method": (line("method", CHAT, chat(), method="GET"), "method", "must be POST"),
    "body": (line("body", CHAT, "text"), "body", "must be an object"),
    "outside": (line("outside", CHAT, chat(), emotion="anger"), "emotion", "belongs into the body"),
    "nested": (line("nested", CHAT, chat(extra_body={"emotion": "anger"})), "extra_body", "at the top level"),
    "misspelt": (line("misspelt", CHAT, chat(emotions="anger")), "emotions", "did you mean emotion?"),
}


def text(url: str, body: dict[str, Any]) -> str:
    if url == RESPONSES:
        return str(body["output"][-1]["content"][0]["text"])
    choice = body["choices"][0]
    return str(choice["text"] if url == COMPLETIONS else choice["message"]["content"])


def readout(url: str, body: dict[str, Any]) -> dict[str, Any] | None:
    found: dict[str, Any] | None = (body if url == RESPONSES else body["choices"][0]).get("emotion_readout")
    return found


def replies(path: Path) -> dict[str, Any]:
    """Every line is whole, at any time."""
    found = [json.loads(row) for row in path.read_text().splitlines()]
    assert len({reply["custom_id"] for reply in found}) == len(found)
    return {reply["custom_id"]: reply for reply in found}


def check_same_readout(batch: Any, served: Any, asked: dict[str, Any]) -> None:
    detail = asked.get("emotion_readout")
    if detail is None:
        assert batch is served is None
        return
    assert len(batch.get("tokens", [])) == (asked.get("max_tokens") or 24 if detail == "tokens" else 0)
    np.testing.assert_allclose(batch.get("tokens", []), served.get("tokens", []), atol=1e-4)
    for name in ("prompt", "reply"):
        assert batch[name] == pytest.approx(served[name], abs=1e-4)
    assert [batch[name] for name in ("probe", "layer", "labels")] == [
        served[name] for name in ("probe", "layer", "labels")
    ]


@pytest.mark.engine
def test_an_interrupted_batch_goes_on_and_replies_as_the_server_does(
    tiny_server: Server, tiny_command: list[str], tmp_path: Path
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [line(name, url, body) for name, (url, body) in GOOD.items()]
    wrong = [row for row, _, _ in BAD.values()]
    # So many that a machine busy with other things still interrupts them.
    more = [line(f"more {n}", CHAT, chat(seed=n)) for n in range(24)]
    # As Windows' editors write it.
    source.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*wrong, *rows, *more, ""]).encode())
    program, _, *arguments = tiny_command
    command = [program, "run-batch", "-i", str(source), "-o", str(output), *arguments, "--max-num-seqs", "2"]
    # The key is another server's: nobody loads circuits here.
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "EMOVLLM_ADMIN_KEY": "exported"}

    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 240
        while first.poll() is None and (not output.exists() or output.read_bytes().count(b"\n") < len(wrong) + 4):
            assert time.monotonic() < end
            time.sleep(0.005)
        os.kill(first.pid, signal.SIGTERM)
        assert first.wait(60) == 128 + signal.SIGTERM, (tmp_path / "first.log").read_text()[-3000:]
    before = replies(output)
    assert len(wrong) + 4 <= len(before) < len(wrong) + len(rows) + len(more)

    second = subprocess.run(
        command, env={**environment, **ONE_PROCESS}, capture_output=True, text=True, check=False, timeout=240
    )
    assert second.returncode == 0, second.stderr[-3000:]
    told = f"emovllm: {len(wrong)} of {len(wrong) + len(rows) + len(more)} lines were refused: "
    assert second.stderr.splitlines()[-1].startswith(told)
    after = replies(output)
    assert len(after) == len(wrong) + len(rows) + len(more)
    assert {name: after[name] for name in before} == before

    for name, (url, body) in GOOD.items():
        route = url if url.startswith("/v1") else f"/v1{url}"
        served = httpx.post(f"{tiny_server.url}{route}", json=body, timeout=60).json()
        assert after[name]["response"]["status_code"] == 200, after[name]
        assert after[name]["error"] is None
        assert text(route, after[name]["response"]["body"]) == text(route, served), name
        check_same_readout(readout(route, after[name]["response"]["body"]), readout(route, served), asked=body)
    distinct = {text(CHAT, after[name]["response"]["body"]) for name in ("plain", *SIX)}
    assert len(distinct) == 7
    for name, (_, parameter, message) in BAD.items():
        reply = after[name]["response"]
        assert reply["status_code"] == 400
        error = reply["body"]["error"]
        assert error["param"] == parameter, (name, error)
        assert message in error["message"]
        assert set(reply["body"]) == {"error"}

    third = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert third.returncode == 0
    assert "has a reply to every line" in third.stderr
    assert replies(output) == after


def test_replies_depend_on_what_circuits_and_probes_hold_and_not_on_where_they_lie() -> None:
    def identity(place: str, reading: Reading | None, **others: Any) -> str:
        settings = Settings(circuit=place, probe=place, digests={"default": "d"}, reading=reading, **others)
        model = SimpleNamespace(served_model_name="tiny", dtype="float32", quantization=None)
        return engine_identity(SimpleNamespace(model_config=model, additional_config={"emovllm": Carried(settings)}))

    read, other = (Reading(digest, 1, ("anger", "calm")) for digest in ("p", "q"))
    assert identity("here", read) == identity("there", read) == identity("here", read, playground=True)
    assert len({identity("here", reading) for reading in (read, other, None)}) == 3


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command sets in its environment must not reach other tests."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.fixture
def application(environment: None, monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    """Stands for the engine's application, which knows the model `tiny` alone. The requests that it gets."""
    requests: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        model = json.loads(request.content)["model"]
        if model != "tiny":
            error = {"message": f"The model `{model}` does not exist.", "code": 404}
            return httpx.Response(404, json={"error": error})
        return httpx.Response(200, json={"choices": []})

    async def answer_batch(args: Any, replies: Replies) -> None:
        assert "EMOVLLM_ADMIN_KEY" not in os.environ
        async with httpx.AsyncClient(transport=httpx.MockTransport(reply), base_url="http://batch") as client:
            for line in replies.left:
                replies.add(line, "engine", await answer(line, client))

    monkeypatch.setattr(command, "answer_batch", answer_batch)
    return requests


def batch(tmp_path: Path, rows: list[str], *options: str) -> int:
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(rows))
    arguments = ["-i", str(source), "-o", str(tmp_path / "out.jsonl"), "--served-model-name", "tiny"]
    return main(["run-batch", *arguments, "--model", "some/model", "--circuit", str(tmp_path), *options])


def test_a_batch_whose_every_line_is_refused_fails_and_says_why(
    tmp_path: Path, application: list[httpx.Request], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line(f"r{number}", CHAT, {"model": "gpt-4o-mini"}) for number in range(3)]
    told = (
        "emovllm: 3 of 3 lines were refused: The model `gpt-4o-mini` does not exist. (the model here is called tiny; "
        "--served-model-name calls it otherwise)"
    )
    assert batch(tmp_path, rows) == 1
    assert capsys.readouterr().err.splitlines()[-1] == told
    assert len(replies(tmp_path / "out.jsonl")) == len(application) == 3
    # Given again, nothing is left to ask, and the batch has failed as before.
    assert batch(tmp_path, rows) == 1
    assert capsys.readouterr().err.splitlines()[-1] == told
    assert len(application) == 3


def test_a_batch_of_which_some_lines_are_refused_says_how_many(
    tmp_path: Path, application: list[httpx.Request], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line("good", CHAT, PLAIN), *(line(f"r{number}", "/v1/embeddings", PLAIN) for number in range(2))]
    assert batch(tmp_path, [*rows, line("get", CHAT, PLAIN, method="GET")]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("emovllm: 3 of 4 lines were refused: url must be one of /v1/chat/completions, ")
    assert last.endswith(f"; 1 for other reasons, see {tmp_path / 'out.jsonl'}")


@pytest.mark.parametrize("url", ["/chat/completions", "/completions", "/responses"])
def test_urls_without_a_version_are_those_with_it(tmp_path: Path, application: list[httpx.Request], url: str) -> None:
    assert batch(tmp_path, [line("a", url, PLAIN)]) == 0
    assert [request.url.path for request in application] == [f"/v1{url}"]


def test_an_exported_admin_key_means_nothing_to_a_batch(tmp_path: Path, application: list[httpx.Request]) -> None:
    os.environ["EMOVLLM_ADMIN_KEY"] = "exported"
    assert batch(tmp_path, [line("a", CHAT, PLAIN)]) == 0
    assert len(application) == 1


def test_metrics_are_served_while_a_batch_runs(
    tmp_path: Path, application: list[httpx.Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, seen = f"http://127.0.0.1:{port}/metrics", []
    answer_batch = command.answer_batch

    async def look(args: Any, replies: Replies) -> None:
        seen.append(httpx.get(url).text)
        await answer_batch(args, replies)

    monkeypatch.setattr(command, "answer_batch", look)
    assert batch(tmp_path, [line("a", CHAT, PLAIN)], "--enable-metrics", "--port", str(port)) == 0
    assert "python_info" in seen[0]
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_port_that_is_taken_is_told(environment: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        arguments = ["--enable-metrics", "--url", "127.0.0.1", "--port", port]
        options, args = parse(arguments, "run-batch", command.add_options)
        with (
            pytest.raises(OptionsError, match=f"at 127.0.0.1:{port}: Address already in use; give another --port"),
            command._metrics(options, args),
        ):
            pass


def test_a_batchs_own_options_may_stand_in_the_file(tmp_path: Path, application: list[httpx.Request]) -> None:
    (tmp_path / "in.jsonl").write_text(line("a", CHAT, PLAIN))
    (tmp_path / "batch.yaml").write_text(
        f"input-file: {tmp_path}/in.jsonl\noutput_file: {tmp_path}/out.jsonl\nenable-metrics: false\n"
        f"circuit: {tmp_path}\nmax-strength: 0.5\nmodel: some/model\n"
    )
    assert main(["run-batch", "--config", str(tmp_path / "batch.yaml")]) == 0
    assert len(replies(tmp_path / "out.jsonl")) == 1


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "in.jsonl: No such file"),
        ("{", [], "in.jsonl: line 1: "),
        ("\xff", [], "in.jsonl: not UTF-8 text"),
        (line("a", CHAT, {}), ["-o", "/no/such/folder/out.jsonl"], "out.jsonl: No such file"),
        (line("a", CHAT, {}), ["--circuit", "no/such"], "no/such: "),
    ],
)
def test_a_batch_that_cannot_run_is_refused_in_a_line_before_an_engine_starts(
    tmp_path: Path,
    content: str | None,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    environment: None,
) -> None:
    source = tmp_path / "in.jsonl"
    if content is not None:
        source.write_bytes(content.encode("latin-1"))
    assert main(["run-batch", "-i", str(source), "-o", str(tmp_path / "out.jsonl"), *options]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("emovllm run-batch: ")]
    assert len(told) == 1
    assert message in told[0]
