"""benchmarks/gpu, as far as it needs no GPU and no engine."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import commands, exactness, kernels, shapes, speed
from benchmarks.gpu.commands import StepFailed, TimeLimit
from benchmarks.gpu.memory import GIB, parameters, room
from benchmarks.gpu.plan import FULL, TINY
from benchmarks.gpu.run import Run, Step
from benchmarks.gpu.steps import steps
from emovllm.circuit_files import load_circuit, save_circuit
from emovllm.fingerprint import fingerprint_distance

CPU: dict[str, Any] = {"gpu": None, "device": "cpu", "free": None, "total": None}
MACHINE = {**CPU, "cpu": "A CPU", "cores": 2, "memory_gib": 8, "python": "3.11", "emovllm": "0", "vllm": "0.32.0"}


@pytest.mark.parametrize(("shape", "billions"), [("3b", 3.21), ("8b", 8.03)])
def test_shapes_are_those_of_the_named_models(tmp_path: Path, shape: str, billions: float) -> None:
    shapes.write_config(shape, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.hidden_size == shapes.SHAPES[shape]["hidden_size"]
    assert parameters(config.to_dict()) / 1e9 == pytest.approx(billions, abs=0.01)


def test_circuits_know_the_weights_that_they_were_made_for(tmp_path: Path) -> None:
    config = shapes.SHAPES["tiny"]
    widths = {"attn": config["num_attention_heads"] * config["head_dim"], "mlp": config["intermediate_size"]}

    def weights(kind: str, layer: int) -> np.ndarray:
        random = np.random.default_rng([layer, widths[kind]])
        return random.standard_normal((config["hidden_size"], widths[kind])).astype(np.float32)

    save_circuit(shapes.random_circuit("tiny", weights, emotions=16), tmp_path)
    circuit = load_circuit(tmp_path)
    assert len(circuit.names) == 16
    assert len(circuit.sites()) == 2 * config["num_hidden_layers"]
    other = shapes.random_circuit("tiny", lambda kind, layer: -weights(kind, layer), emotions=16)
    assert fingerprint_distance(other.fingerprint, circuit.fingerprint) == pytest.approx(2)


@pytest.mark.parametrize(
    ("shape", "gib", "sizes", "prompt_tokens"),
    [
        ("3b", 80, [1, 8, 16, 64, 256], 384),
        ("8b", 80, [1, 8, 16, 64, 256], 80),
        ("8b", 140, [1, 8, 16, 64, 256], 384),
        ("8b", 72, [1, 8, 16, 64], 384),
    ],
)
def test_requests_fit_into_the_memory_that_is_free(shape: str, gib: int, sizes: list[int], prompt_tokens: int) -> None:
    config = shapes.SHAPES[shape]
    share = room(config, 3, (gib - 1) * GIB, gib * GIB)
    assert share is not None
    assert 3 * share.share < 1
    assert speed.requests(FULL, share) == (sizes, prompt_tokens)
    assert sizes[-1] * (prompt_tokens + FULL.output_tokens) <= share.tokens


def test_engines_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, FULL, {**CPU, "device": "cuda", "free": 39 * GIB, "total": 40 * GIB})
    with pytest.raises(StepFailed, match="3 engines of the shape 8b do not fit into the 39 GiB that are free"):
        run.room("8b", 3)


def test_kernels_are_compared_by_name() -> None:
    plain = {"kernels": {"norm": 4, "gemm": 8}, "step_ms": 2.0, "microseconds": {}}
    steered = {"kernels": {"norm": 4, "gemm": 8, "add": 4}, "step_ms": 2.1, "microseconds": {}}
    found = kernels.difference(plain, steered, layers=2)
    assert (found["extra_per_layer"], found["ratio"], found["changed"]) == (2, pytest.approx(1.05), {"add": 4})


def test_each_goal_is_held_to_its_ratio(tmp_path: Path) -> None:
    def row(name: str, mean: float) -> dict[str, Any]:
        ratio = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "rounds": 5, "starts": [mean]}
        return {"name": name, "ratios": {"tpot_ms": ratio}}

    rows = [row("plain vLLM", 1), row("no emotion", 1.005), row("one emotion", 1.03)]
    rows.append(row("256 blends and strengths", 1.035))
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "result.json").write_text(json.dumps({"emotions": 6, "rows": {"16": rows, "256": rows}}))
    assert speed.goals(tmp_path) == [
        ["idle, a circuit loaded", "16", "1", "1.005 [0.995, 1.015]", "met"],
        ["idle, a circuit loaded", "256", "1", "1.005 [0.995, 1.015]", "met"],
        ["one circuit", "16", "1.01", "1.030 [1.020, 1.040]", "missed"],
        ["one circuit", "256", "1.01", "1.030 [1.020, 1.040]", "missed"],
        ["16 mixes", "16", "1.03", "1.035 [1.025, 1.045]", "open"],
        ["256 mixes", "256", "1.05", "1.035 [1.025, 1.045]", "met"],
    ]


def test_an_engine_that_compiled_anew_was_not_restarted(tmp_path: Path) -> None:
    log = tmp_path / "steered.log"
    log.write_text("Directly load AOT compilation from path /cache\n")
    exactness.require_loaded(log)
    log.write_text("torch.compile took 20 s\n")
    with pytest.raises(StepFailed, match=r"compiled anew.*\n.*took 20 s"):
        exactness.require_loaded(log)


def test_what_is_worth_the_most_comes_first() -> None:
    names = [step.name for step in steps(FULL)]
    assert names[4:] == ["speed-3b", "kernels-3b", "columns-3b", "speed-8b"]
    assert {name.split("-")[0] for name in names[:4]} == {"exactness"}
    assert {setting.env["VLLM_USE_V2_MODEL_RUNNER"] for setting in FULL.settings} == {"0", "1"}
    assert [setting.name for setting in FULL.settings if setting.restarted] == ["v2-piecewise"]
    assert {step.name.split("-")[0] for step in steps(TINY)} == {name.split("-")[0] for name in names}


def test_a_command_ends_with_the_time_that_it_has(tmp_path: Path) -> None:
    code = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(600)"
    start = time.monotonic()
    with pytest.raises(TimeLimit), commands.limited(1):
        commands.run(["-c", code], tmp_path / "out", tmp_path / "log")
    assert time.monotonic() - start < 60
    assert not Path(f"/proc/{(tmp_path / 'out').read_text().strip()}").exists()


Measure = Callable[[Run, Path], None]


def run_steps(monkeypatch: pytest.MonkeyPatch, out: Path, *argv: str, **measures: Measure) -> int:
    def section(folder: Path) -> list[str]:
        path = folder / "figure"
        return ["", path.read_text()] if path.exists() else []

    planned = [Step(f"{name}-x", 1, measure, section) for name, measure in measures.items()]
    monkeypatch.setattr(gpu, "steps", lambda _: planned)
    monkeypatch.setattr(gpu, "machine_of", lambda *_: {**MACHINE, "date": "2026-11-28"})
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return gpu.main(["--out", str(out), *argv])


def measured(run: Run, folder: Path) -> None:
    (folder / "figure").write_text(f"the figure of {folder.name}")


def broken(run: Run, folder: Path) -> None:
    raise StepFailed("its last words")


def test_a_step_that_fails_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run_steps(monkeypatch, tmp_path, first=measured, second=broken, third=measured) == 1
    page = (tmp_path / "report.md").read_text()
    assert "the figure of first-x" in page
    assert "the figure of third-x" in page
    assert "| second-x | failed | 0 |" in page
    assert "its last words" in page
    # It is tried again, and what is done is not.
    assert run_steps(monkeypatch, tmp_path, first=broken, second=measured, third=broken) == 0
    assert "the figure of second-x" in (tmp_path / "report.md").read_text()


def test_a_terminated_run_notes_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def terminated(run: Run, folder: Path) -> None:
        measured(run, folder)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    assert run_steps(monkeypatch, tmp_path, first=measured, second=terminated, third=measured) == 130
    page = (tmp_path / "report.md").read_text()
    assert "the figure of second-x" in page
    assert "| second-x | cut short |" in page
    assert "| third-x | not run |" in page
    assert run_steps(monkeypatch, tmp_path, first=broken, second=measured, third=measured) == 0


def test_steps_share_the_time_that_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run_steps(monkeypatch, tmp_path, "--budget", "0.1", first=broken) == 0
    assert "| first-x | not run |" in (tmp_path / "report.md").read_text()


def test_only_the_steps_that_are_named_are_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run_steps(monkeypatch, tmp_path, "--only", "second", first=broken, second=measured) == 0
    with pytest.raises(SystemExit, match="there are first-x, second-x"):
        run_steps(monkeypatch, tmp_path, "--only", "third", first=broken, second=measured)


def test_a_folder_holds_one_machines_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ask(words: list[str], stdout: Path, log: Path) -> int:
        stdout.write_text(json.dumps(MACHINE))
        return 0

    monkeypatch.setattr(commands, "run", ask)
    assert gpu.machine_of(tmp_path, "tiny") == gpu.machine_of(tmp_path, "tiny")
    (tmp_path / "machine.json").write_text(json.dumps({"gpu": "another", "size": "tiny"}))
    with pytest.raises(SystemExit, match=r"measured elsewhere \(gpu another there"):
        gpu.machine_of(tmp_path, "tiny")
