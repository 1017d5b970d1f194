"""`emovllm run-batch`: replies as the server's, each line's emotion its own, and an interrupted run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.circuits import SIX
from support.servers import Server

pytestmark = pytest.mark.engine

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


def replies(path: Path) -> dict[str, Any]:
    """Every line is whole, at any time."""
    found = [json.loads(row) for row in path.read_text().splitlines()]
    assert len({reply["custom_id"] for reply in found}) == len(found)
    return {reply["custom_id"]: reply for reply in found}


def test_an_interrupted_batch_goes_on_and_replies_as_the_server_does(
    tiny_server: Server, tiny_command: list[str], tmp_path: Path
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [line(name, url, body) for name, (url, body) in GOOD.items()]
    wrong = [row for row, _, _ in BAD.values()]
    source.write_text("\n".join([*wrong, *rows, *(line(f"more {n}", CHAT, chat(seed=n)) for n in range(20))]) + "\n")
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
    assert len(wrong) + 4 <= len(before) < len(wrong) + len(rows) + 20

    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert second.returncode == 0, second.stderr[-3000:]
    after = replies(output)
    assert len(after) == len(wrong) + len(rows) + 20
    assert {name: after[name] for name in before} == before

    for name, (url, body) in GOOD.items():
        served = httpx.post(f"{tiny_server.url}{url}", json=body, timeout=60).json()
        assert after[name]["response"]["status_code"] == 200, after[name]
        assert after[name]["error"] is None
        assert text(url, after[name]["response"]["body"]) == text(url, served), name
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from emovllm.cli import main

    # What a command sets in its environment must not reach other tests.
    monkeypatch.setattr(os, "environ", dict(os.environ))
    source = tmp_path / "in.jsonl"
    if content is not None:
        source.write_bytes(content.encode("latin-1"))
    assert main(["run-batch", "-i", str(source), "-o", str(tmp_path / "out.jsonl"), *options]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("emovllm: ")]
    assert len(told) == 1
    assert message in told[0]
