"""What examples/ holds runs as it is, and prints what its comments say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.circuits import SIX
from support.servers import BIN, ONE_PROCESS, Server

pytestmark = pytest.mark.engine

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_serve_and_ask_shows_every_way_to_ask(server: Server) -> None:
    command = [sys.executable, str(EXAMPLES / "serve_and_ask.py"), "--base-url", f"{server.url}/v1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    replies = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert replies["emotions"].split(", ") == list(SIX)
    first, last = SIX[0], SIX[-1]
    asked = ["plain", first, f"{first}, half as strong", f"{first} and {last}", f"{last}, streaming"]
    assert len({replies[name] for name in asked}) == len(asked), replies
    # An emotion in the model's name is the same request, streamed or not.
    assert replies[f"SmolLM2-135M-Instruct:{last}"] == replies[f"{last}, streaming"]
    assert "unknown emotion 'boredom'" in replies["boredom"]


def test_read_while_writing_tells_a_label_a_token(tiny_server: Server) -> None:
    command = [sys.executable, str(EXAMPLES / "read_while_writing.py"), "--base-url", f"{tiny_server.url}/v1"]
    done = subprocess.run(
        [*command, "--emotion", "anger", "--max-tokens", "6"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    *tokens, prompt, reply = done.stdout.splitlines()
    assert sum(line.count("%") for line in tokens) == 6
    # What wrote the first token is the state that had read the prompt.
    assert tokens[0].split(": ")[-1].split(", ")[0] == prompt.removeprefix("the prompt: ")
    assert reply.startswith("the reply: ")


def test_batch_evaluate_answers_its_lines_and_evaluates(
    server: Server, tiny_command: list[str], tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "BATCH_ARGUMENTS": " ".join(tiny_command[2:]),
        "EVALUATE_ARGUMENTS": f"--base-url {server.url}/v1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **ONE_PROCESS,
    }
    command = ["bash", str(EXAMPLES / "batch_evaluate.sh"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "out/replies.jsonl").read_text().splitlines()]
    texts = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
    assert sorted(texts) == ["anger", "mixed", "plain"]
    assert len(set(texts.values())) == 3
    # Three messages: plain, and in six emotions.
    scored = (tmp_path / "out/evaluation/scored.jsonl").read_text().splitlines()
    assert len({json.loads(line)["method"] for line in scored}) == 2
    assert (tmp_path / "out/evaluation/summary.md").is_file()
    assert done.stdout.splitlines()[-1].startswith(str(tmp_path / "out/replies.jsonl"))
