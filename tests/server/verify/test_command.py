"""`emovllm verify` on a tiny model: right engines pass, and wrong ones do not."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from emovllm.cli import main
from emovllm_offline.model.reference_process import Reference
from emovllm_server.bench.engine import Engine
from emovllm_server.verify import run
from support.circuits import random_circuit
from support.models import tiny_chat_model
from support.servers import BIN

ENGINE = ("--enforce-eager", "--max-model-len", "256", "--block-size", "32", "--max-num-seqs", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_chat_model(tmp_path_factory.mktemp("verify") / "model", initializer_range=0.2)


@pytest.fixture(scope="module")
def circuit(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_circuit(model, tmp_path_factory.mktemp("verify") / "circuit", scale=1.0)


class HuggingFace:
    """The reference in this process."""

    def __init__(self, model: str, circuit: Path) -> None:
        self._reference = Reference(model, str(circuit))
        self.about = self._reference.about()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if "lengths" in request:
            return {"prompts": self._reference.prompts(**request)}
        return {"replies": self._reference.replies(**request)}


@pytest.mark.engine
def test_a_right_engine_passes_every_check(model: str, circuit: Path, tmp_path: Path) -> None:
    command = [str(BIN / "emovllm"), "verify", model, "--circuit", str(circuit), *ENGINE, "--dtype", "float32"]
    done = subprocess.run(
        [
            *command,
            "--rounds",
            "2",
            "--json",
            "--logs",
            str(tmp_path),
            "--max-strength",
            "0.5",
            "--default-emotion",
            "anger",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    found = json.loads(done.stdout)
    verdicts = {verdict["name"]: verdict for verdict in found["verdicts"]}
    judged = {name for name, verdict in verdicts.items() if verdict["passed"]}
    assert judged >= {
        "emotions are felt",
        "exact in float32",
        "exact in every size of batch",
        "exact on a shared prefix",
        "neighbours untouched",
        "every rank holds its sites",
    }
    assert verdicts["exact on a shared prefix"]["figures"]["hits"] > 0
    assert verdicts["time per output token"]["figures"]["rounds"] == 2
    assert found["reference"].startswith("Transformers with hooks, float32")
    assert str(tmp_path) not in done.stdout
    assert (tmp_path / "steered.log").exists()


@pytest.mark.engine
def test_a_wrong_engine_fails_the_check_of_what_is_wrong(model: str, circuit: Path, tmp_path: Path) -> None:
    asked = run.ask_reference(HuggingFace(model, circuit), 256)  # type: ignore[arg-type]
    argv = [model, "--circuit", str(circuit), *ENGINE]
    wrong = tmp_path / "wrong"
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_PLUGINS": "emovllm",
        "SABOTAGE": str(wrong),
    }
    wrong.write_text("")
    arguments = {"argv": argv, "steered": True, "changes": {"dtype": "float32"}}
    failed = {}
    with contextlib.closing(
        Engine("float32", "support.sabotaged_engine", arguments, env, tmp_path / "engine.log")
    ) as engine:
        for sabotage in ("site", "graph", "neighbour", ""):
            wrong.write_text(sabotage)
            failed[sabotage] = [verdict.name for verdict in run.in_float32(engine, asked) if not verdict.passed]
    assert failed[""] == []
    assert "exact in float32" in failed["site"]
    # The mixed batch has another size.
    assert failed["graph"] == ["exact in every size of batch"]
    assert "neighbours untouched" in failed["neighbour"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data-parallel-size", "2"], "leave out --data-parallel-size"),
        (["--rounds", "-1"], "--rounds must be at least 0"),
        (["--circuit", "/no/such"], "no such circuit folder"),
    ],
)
def test_what_cannot_be_verified_is_told_in_a_line(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert main(["verify", *options]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("emovllm verify: ")]
    assert len(told) == 1
    assert message in told[0]
