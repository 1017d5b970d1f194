"""Are the engine's replies those of Hugging Face with hooks? `emovllm verify`, once for each setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu import commands
from benchmarks.gpu.commands import StepFailed
from benchmarks.gpu.plan import Setting
from benchmarks.gpu.run import Run
from benchmarks.gpu.tables import table

# vLLM says so where it loads what it compiled before, whole.
_LOADED = "Directly load AOT compilation"
_WORDS = {True: "passed", False: "**failed**", None: ""}


def measure(run: Run, folder: Path, setting: Setting) -> None:
    """Raises: StepFailed where a check fails."""
    model = run.model(run.plan.verified_shape, weights=True)
    words = ["-m", "emovllm.cli", "verify", str(model / "model"), "--circuit", str(model / "circuit-6")]
    words += ["--skip-tokenizer-init", "--generation-config", "vllm", "--rounds", "0", "--json", *setting.arguments]
    env = {**setting.env, "VLLM_CACHE_ROOT": str(folder / "cache")}
    for start in ("first", "second") if setting.restarted else ("first",):
        logs, log = folder / start, folder / f"{start}.log"
        if commands.run([*words, "--logs", str(logs)], folder / f"{start}.json", log, env):
            raise StepFailed(_failed_checks(folder / f"{start}.json") or commands.last_words(log))
    if setting.restarted:
        require_loaded(folder / "second" / "steered.log")


def require_loaded(log: Path) -> None:
    """Raises: StepFailed where an engine compiled what an earlier one had left in its cache."""
    if _LOADED not in log.read_text(errors="replace"):
        raise StepFailed(f'the second start compiled anew: its log has no "{_LOADED}"\n{commands.last_words(log)}')


def section(folder: Path, setting: Setting) -> list[str]:
    lines: list[str] = []
    for start in ("first", "second"):
        findings = findings_of(folder / f"{start}.json")
        if findings is None:
            continue
        again = ", started again with what the first start compiled" if start == "second" else ""
        rows = [[v["name"], _WORDS[v["passed"]], v["told"]] for v in findings["verdicts"]]
        lines += ["", f"{setting.title}{again}: `{findings['command']}`", "", *table(["", "", ""], rows)]
    return lines


def _failed_checks(path: Path) -> str:
    findings = findings_of(path)
    failed = [v for v in findings["verdicts"] if v["passed"] is False] if findings else []
    return "\n".join(f"{v['name']}: {v['told']}" for v in failed)


def findings_of(path: Path) -> dict[str, Any] | None:
    """None where the command ended before it printed them."""
    try:
        findings: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return findings
