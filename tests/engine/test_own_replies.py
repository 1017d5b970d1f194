"""`emovllm own-replies` with the default model, its circuit and a real engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emovllm import cpu
from emovllm.models import shipped_circuits
from emovllm_offline.data.examples import load_examples
from support.circuits import SIX

pytestmark = pytest.mark.engine


def test_the_default_model_writes_replies_of_its_own(default_model: str, tmp_path: Path) -> None:
    out = tmp_path / "own.jsonl"
    words = ["own-replies", "--circuit", str(shipped_circuits() / "SmolLM2-135M-Instruct"), "--out", str(out)]
    ended = subprocess.run(
        [sys.executable, "-m", "emovllm.cli", *words, "--limit", "2", "--strengths", "1", "--samples", "2"],
        # Compiled by Dynamo alone, which is quick.
        env={**os.environ, "VLLM_CPU_CI_ENV": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Starting the engine: done in " in ended.stderr
    if len(os.sched_getaffinity(0)) <= cpu.FEW_CORES:
        assert "reserve_cpu_num=0" in ended.stdout + ended.stderr
    written, own = load_examples()[:2], load_examples(out)
    assert [example.id for example in own] == [example.id for example in written]
    changed = sum(a.replies[name] != b.replies[name] for a, b in zip(written, own, strict=True) for name in SIX)
    samples = [json.loads(line) for line in (tmp_path / "own.jsonl.work" / "samples.jsonl").read_text().splitlines()]
    texts = {sample["text"] for row in samples for replies in row["replies"].values() for sample in replies}
    assert changed >= 4, ended.stdout
    for before, after in zip(written, own, strict=True):
        assert all(after.replies[name] in {*texts, before.replies[name]} for name in SIX)
