"""From a model to an evaluated server, by the commands that the README gives, in their order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from emovllm.circuit_files import load_circuit
from support.servers import BIN, Server
from support.walk import EMOTIONS, Walk

pytestmark = pytest.mark.engine

ENGINE = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "256")


def test_a_circuit_is_found_calibrated_served_and_evaluated(
    serve: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    walk = Walk(tmp_path)
    circuit, out = tmp_path / "circuit", tmp_path / "evaluated"

    def printed() -> str:
        return capsys.readouterr().out

    assert walk.discover(circuit) == 0
    found = load_circuit(circuit)
    asked = ("--data", walk.messages, "--judge", "lexicon", "--prompt-style", walk.asking, "--max-tokens", "8")
    printed()
    # A random model shows no emotion at any strength: each is swept, and left as it was.
    calibrate = ("calibrate", walk.model, "--circuit", circuit, "--strengths", "0.5,1", *asked)
    assert walk(*calibrate, "--engine-args", " ".join(ENGINE)) == 1
    output = capsys.readouterr()
    assert f"{circuit}: 0 emotions calibrated; see {tmp_path / 'circuit.work' / 'calibration'}" in output.out
    assert "Starting the engine: done in " in output.err
    calibrated = load_circuit(circuit)
    told = calibrated.spec.provenance["calibration"]
    assert (told["lambdas"], told["uncalibrated"], told["data"]["messages"]) == ([0.5, 1.0], list(EMOTIONS), 1)
    assert calibrated.spec.tensors_sha256 == found.spec.tensors_sha256
    replies = (tmp_path / "circuit.work" / "calibration" / "replies.jsonl").read_text().splitlines()
    assert len(replies) == 1 + len(EMOTIONS) * (1 + 2)

    command = [str(BIN / "emovllm"), "serve", walk.model, "--circuit", str(circuit), *ENGINE]
    server = serve([*command, "--served-model-name", "tiny"]).wait()
    evaluate = ("evaluate", "--base-url", f"{server.url}/v1", "--methods", "none,prompting,circuits", *asked)
    assert walk(*evaluate, "--strengths", "1,2", "--out", out) == 0
    assert printed().splitlines()[-1] == str(out / "page.html")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["circuit"] == calibrated.digest()
    scored = [json.loads(line) for line in (out / "scored.jsonl").read_text().splitlines()]
    assert len(scored) == 1 + len(EMOTIONS) * (1 + 2)

    assert walk("top", server.url, "--once") == 0
    screen = printed()
    assert all(emotion in screen for emotion in EMOTIONS)
