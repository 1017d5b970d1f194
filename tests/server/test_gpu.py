"""benchmarks/gpu from end to end, with a tiny model on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.exactness import findings_of
from benchmarks.gpu.plan import TINY
from benchmarks.gpu.steps import steps


@pytest.mark.engine
def test_every_step_measures_a_tiny_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.gpu", "--size", "tiny", "--out", str(out)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    page = (out / "report.md").read_text()
    assert done.returncode == 0, page
    names = [step.name for step in steps(TINY)]
    assert [line.split(":")[0] for line in done.stdout.splitlines() if ": done, " in line] == names
    assert all(f"\n| {name} | done |" in page for name in names)
    titles = [line.removeprefix("#### ") for line in page.splitlines() if line.startswith("#### ")]
    assert titles == [
        "Exactness",
        "Speed",
        "The kernels of one decode step",
        "Prefill, and decode by the number of columns",
        "Steps",
    ]
    assert "| exact in float32 | passed |" in page
    assert "| tiny | one circuit | 2 | 1.01 |" in page
    assert "| 2 | 256 blends and strengths |" in page
    assert "| `aten::mm` | +4 |" in page  # a product for each of two layers' sites
    assert "| decode, batch 2 | 2 columns |" in page
    assert str(tmp_path) not in page
    findings = findings_of(out / "exactness-v1" / "first.json")
    assert findings is not None
    assert findings["passed"]
    assert "plain.log" not in {log.name for log in (out / "exactness-v1" / "first").iterdir()}
    # What is done is not done again.
    again = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines() == [f"{name}: done before" for name in names]
    assert (out / "report.md").read_text() == page
