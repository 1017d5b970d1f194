"""What one decode step runs on the GPU, plain and steered: its kernels, by PyTorch's profiler, and its time.

Steering is free of kernels of its own where the injection was fused with the residual add and norm that follow it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu import shapes
from benchmarks.gpu.engines import Wanted, side_by_side
from benchmarks.gpu.run import Run
from benchmarks.gpu.tables import number, table
from emovllm.files import write_json

_TITLES = {"FULL_AND_PIECEWISE": "full CUDA graphs", "NONE": "no graphs"}


def measure(run: Run, folder: Path, shape: str) -> None:
    """Raises: StepFailed, BenchError."""
    model = run.model(shape)
    arguments = {
        "model": str(model / "model"),
        "dtype": "bfloat16",
        "max_model_len": 1024,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        **run.engine_arguments(run.room(shape, 2 * len(run.plan.graphs))),
    }
    circuit = model / f"circuit-{shapes.EMOTIONS}"
    wanted = {
        f"{kind}-{graphs}": Wanted(
            {**arguments, "compilation_config": {"cudagraph_mode": graphs}}, circuit if kind == "steered" else None
        )
        for graphs in run.plan.graphs
        for kind in ("plain", "steered")
    }
    rows = []
    with side_by_side("benchmarks.gpu.kernels_process", wanted, folder) as engines:
        for graphs in run.plan.graphs:
            for size in run.plan.profiled_sizes:
                plain, steered = (engines[f"{kind}-{graphs}"] for kind in ("plain", "steered"))
                asked = {"size": size, "vocabulary": shapes.SHAPES[shape]["vocab_size"]}
                sides = [engine.ask({**asked, "emotions": names}) for engine, names in _asked(plain, steered)]
                rows.append({"graphs": graphs, "size": size, **difference(*sides, plain.about["layers"])})
                write_json(folder / "kernels.json", {"engine": plain.about, "shape": shape, "rows": rows})


def _asked(plain: Any, steered: Any) -> list[tuple[Any, list[str]]]:
    return [(plain, []), (steered, ["emotion-1", "emotion-2"])]


def difference(plain: dict[str, Any], steered: dict[str, Any], layers: int) -> dict[str, Any]:
    """Of two decode steps: how many kernels, how many more in a layer, which, and the ratio of the times."""
    names = sorted(plain["kernels"].keys() | steered["kernels"].keys())
    changed = {name: steered["kernels"].get(name, 0) - plain["kernels"].get(name, 0) for name in names}
    counts = [sum(side["kernels"].values()) for side in (plain, steered)]
    return {
        "kernels": counts,
        "extra_per_layer": (counts[1] - counts[0]) / layers,
        "step_ms": [plain["step_ms"], steered["step_ms"]],
        "ratio": steered["step_ms"] / plain["step_ms"],
        "changed": {name: change for name, change in changed.items() if change},
        "microseconds": [plain["microseconds"], steered["microseconds"]],
    }


def section(folder: Path) -> list[str]:
    path = folder / "kernels.json"
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    rows, lines = [], []
    for row in result["rows"]:
        title = _TITLES.get(row["graphs"], row["graphs"])
        cells = [*(number(count, 1) for count in row["kernels"]), f"{row['extra_per_layer']:+.2f}"]
        cells += [*(number(ms, 3) for ms in row["step_ms"]), number(row["ratio"], 3)]
        rows.append([title, str(row["size"]), *cells])
        changed = [[f"`{name}`", f"{change:+g}"] for name, change in row["changed"].items()]
        if changed:
            told = f"Kernels that differ, {title}, batch {row['size']}:"
            lines += ["", told, "", *table(["kernel", "per step"], changed)]
    heads = ["", "batch", "kernels, plain", "steered", "more per layer", "ms per step, plain", "steered", "ratio"]
    told = f"The shape {result['shape']}, {result['engine']['layers']} layers:"
    return ["", told, "", *table(heads, rows), *lines]
