"""emovllm evaluate against a real server, and what it says where its own does not start."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from emovllm.models import NAME, shipped_circuits
from emovllm.probe import load_probe
from emovllm.readout import leads
from support.models import tiny_model
from support.servers import BIN, Server

pytestmark = pytest.mark.engine


def evaluate(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "emovllm"), "evaluate", "--judge", "lexicon,readout", "--out", str(out), "--max-tokens", "12"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def test_a_running_server_is_evaluated(server: Server, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text('{"user": "My neighbour brought my bike back with a flat tyre."}\n')
    arguments = ["--base-url", f"{server.url}/v1", "--data", str(data), "--strengths", "1,1.1"]
    refused = evaluate(tmp_path / "out", *arguments)
    assert refused.returncode == 2
    assert "the server was not started with steering" in refused.stderr
    done = evaluate(tmp_path / "out", *arguments, "--methods", "none,prompting,circuits,circuits+prompting")
    assert done.returncode == 0, done.stderr
    replies = [json.loads(line) for line in (tmp_path / "out/replies.jsonl").read_text().splitlines()]
    assert len(replies) == 1 + 6 * (1 + 2 + 2)
    by_key = {tuple(reply["key"]): reply for reply in replies}
    plain = by_key["line-1", "none", "", 0.0, "", ""]
    # Circuits have the neutral prompt, and say something else.
    circuits = [reply for key, reply in by_key.items() if key[1] == "circuits"]
    assert all(reply["prompt"] == plain["prompt"] for reply in circuits)
    assert len({reply["text"] for reply in (plain, *circuits)}) > 6
    scored = [json.loads(line) for line in (tmp_path / "out/scored.jsonl").read_text().splitlines()]
    assert all(row["fluency"] > 0 and row["perplexity"] > 0 for row in scored if row["emotion"])
    # The server reads with the probe of the circuit's folder, replies without an emotion too.
    reading = json.loads((tmp_path / "out/summary.json").read_text())["readout"]
    assert reading["probe"] == load_probe(shipped_circuits() / NAME).digest
    for row in scored:
        assert list(row["readout"]["reply"]) == reading["labels"]
        assert sum(row["readout"]["reply"].values()) == pytest.approx(1, abs=1e-3)
        if row["emotion"]:
            assert row["matches"]["readout"] == {row["emotion"]: leads(row["readout"]["reply"], row["emotion"])}
    # Circuits begin at the prompt's last token, and what they add is read.
    (before,) = (row["readout"]["prompt"] for row in scored if row["method"] == "none")
    added = [
        row["readout"]["prompt"][row["emotion"]] - before[row["emotion"]]
        for row in scored
        if row["method"] == "circuits"
    ]
    assert sum(added) / len(added) > 0.05, added
    assert "Felt against shown, judge lexicon" in (tmp_path / "out/page.html").read_text()
    # Greedy replies are what the model finds likely.
    assert all(row["perplexity"] >= 0.9 for row in scored if row["method"] == "circuits")


def test_an_engine_that_does_not_start_is_told_with_its_reason(tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "model")
    done = evaluate(tmp_path / "out", other, "--circuit", str(shipped_circuits() / NAME), "--limit", "1")
    assert done.returncode == 2
    assert "the server did not start: " in done.stderr
    assert "the circuit was made for HuggingFaceTB/" in done.stderr
    assert str(tmp_path / "out" / "server.log") in done.stderr
