"""Prefill and decode by the number of columns, one for each emotion: plain vLLM and engines of circuits, in turn."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.engines import Wanted, side_by_side
from benchmarks.gpu.plan import Workload
from benchmarks.gpu.run import Run
from benchmarks.gpu.tables import number, ratio_text, table
from emovllm.circuit_files import load_circuit
from emovllm.files import write_json
from emovllm.spec import CircuitSpec
from emovllm_server.bench.engine import VLLM_MODULE, Engine
from emovllm_server.bench.plan import BLENDS, Block, requests
from emovllm_server.bench.ratios import ratio
from emovllm_server.bench.record import timing

PLAIN = "plain"
# Every token of the prompt is steered too, as far as that costs anything.
_SCOPE = {"emotion_scope": "all"}
Values = dict[tuple[str, str], list[float]]  # of an engine and a workload, by name, one for each round


def measure(run: Run, folder: Path, shape: str) -> None:
    """Writes after each round what was measured. Raises: StepFailed, BenchError."""
    workloads, columns = run.plan.workloads, run.plan.columns
    model = run.model(shape, columns)
    circuits = {f"{count} columns": model / f"circuit-{count}" for count in columns}
    longest = max(workload.prompt_tokens + workload.output_tokens for workload in workloads)
    arguments = {
        "model": str(model / "model"),
        "dtype": "bfloat16",
        "max_model_len": -(-longest // 128) * 128,
        # A prefill is one batch.
        "max_num_batched_tokens": max(workload.prompt_tokens for workload in workloads),
        "disable_log_stats": False,
        **run.engine_arguments(run.room(shape, 1 + len(circuits))),
    }
    wanted = {name: Wanted(arguments, circuit) for name, circuit in {PLAIN: None, **circuits}.items()}
    specs = {name: load_circuit(circuit).spec for name, circuit in circuits.items()}
    values: Values = defaultdict(list)
    with side_by_side(VLLM_MODULE, wanted, folder) as engines:
        _round(-1, engines, specs, workloads)  # what slept wakes up
        for turn in range(run.plan.rounds):
            for place, value in _round(turn, engines, specs, workloads).items():
                values[place].append(value)
            rows = _rows(values, workloads, list(engines))
            write_json(folder / "columns.json", {"engine": engines[PLAIN].about, "shape": shape, "rows": rows})


def _round(
    turn: int, engines: dict[str, Engine], specs: dict[str, CircuitSpec], workloads: tuple[Workload, ...]
) -> dict[tuple[str, str], float]:
    """Each workload on each engine, in another order each time."""
    random = np.random.default_rng(turn + 1)
    vocabulary = next(iter(specs.values())).model.vocab_size
    values = {}
    for workload in workloads:
        count = workload.requests
        prompts = random.integers(0, vocabulary, (count, workload.prompt_tokens)).tolist()
        for name in random.permutation(list(engines)).tolist():
            spec = specs.get(name)
            fields = [{**blend, **_SCOPE} for blend in requests(BLENDS, count, spec)] if spec else [{}] * count
            reply = engines[name].measure(prompts, fields, workload.output_tokens)
            measured = timing(Block(0, turn, count, ()), name, BLENDS, "", reply)
            values[name, workload.title] = float(getattr(measured, workload.figure))
    return values


def _rows(values: Values, workloads: tuple[Workload, ...], names: list[str]) -> list[dict[str, Any]]:
    """Of each workload and engine, its geometric mean in milliseconds, and its ratio to plain vLLM's."""
    rows: list[dict[str, Any]] = []
    for workload in workloads:
        plain = np.log(values[PLAIN, workload.title])
        for name in names:
            logs = np.log(values[name, workload.title])
            row = {"workload": workload.title, "engine": name, "ms": float(np.exp(logs.mean()))}
            compared = None if name == PLAIN else asdict(ratio({"rounds": (logs - plain).tolist()}))
            rows.append({**row, "rounds": len(logs), "ratio": compared})
    return rows


def section(folder: Path) -> list[str]:
    path = folder / "columns.json"
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    rows = [[r["workload"], r["engine"], number(r["ms"], 2), ratio_text(r["ratio"])] for r in result["rows"]]
    told = (
        f"The shape {result['shape']}, every token of every request steered by a mix of all its circuit's emotions; "
        f"{result['rows'][0]['rounds']} rounds, time to the first token or for each further one:"
    )
    return ["", told, "", *table(["", "", "ms", "ratio to plain"], rows)]
