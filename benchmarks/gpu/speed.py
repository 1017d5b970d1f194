"""What steering costs beside plain vLLM: `emovllm bench` on a shape, with dummy weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu import commands, shapes
from benchmarks.gpu.commands import StepFailed
from benchmarks.gpu.memory import Room
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.run import Run
from benchmarks.gpu.tables import number, ratio_text, table
from emovllm_server.bench.plan import BLENDS, NONE, ONE
from emovllm_server.bench.ratios import Ratio
from emovllm_server.bench.result import scenario_name, verdict

# Plain twice, and steered.
_ENGINES = 3
# Of a cache that gives less to a request, a batch is left out.
_LEAST_PROMPT = 64
_BLOCK = 16  # tokens of the cache's blocks
# TPOT in ratio to plain vLLM: what is asked for, in a batch of this size, or in each; at most.
GOALS = (
    ("idle, a circuit loaded", NONE, None, 1.0),
    ("one circuit", ONE, None, 1.01),
    ("16 mixes", BLENDS, 16, 1.03),
    ("256 mixes", BLENDS, 256, 1.05),
)


def measure(run: Run, folder: Path, shape: str) -> None:
    """Raises: StepFailed."""
    model = run.model(shape)
    share = run.room(shape, _ENGINES)
    sizes, prompt_tokens = requests(run.plan, share)
    arguments = {**run.engine_arguments(share), **({"max_num_batched_tokens": 8192} if run.on_gpu else {})}
    words = ["-m", "emovllm.cli", "bench", str(model / "model"), "--circuit", str(model / f"circuit-{shapes.EMOTIONS}")]
    words += ["--without-hf", "--dtype", "bfloat16", "--batch-sizes", ",".join(map(str, sizes)), "--starts", "1"]
    words += ["--rounds", str(run.plan.rounds), "--prompt-tokens", str(prompt_tokens)]
    words += ["--output-tokens", str(run.plan.output_tokens), "--engine-args", json.dumps(arguments)]
    env = {"VLLM_CACHE_ROOT": str(folder / "cache")}
    if commands.run([*words, "--out", str(folder / "bench")], folder / "out", folder / "log", env):
        raise StepFailed(commands.last_words(folder / "log"))


def requests(plan: Plan, share: Room | None) -> tuple[list[int], int]:
    """The sizes of batches that the cache holds, and the tokens of a prompt."""
    if share is None:
        return list(plan.batch_sizes), plan.prompt_tokens
    for largest in reversed(plan.batch_sizes):
        prompt = min(plan.prompt_tokens, share.tokens // largest // _BLOCK * _BLOCK - plan.output_tokens)
        if prompt >= _LEAST_PROMPT:
            return [size for size in plan.batch_sizes if size <= largest], prompt
    raise StepFailed(f"a cache of {share.tokens} tokens is too small")


def goals(folder: Path) -> list[list[str]]:
    """Of each goal that was measured: what, the batch, the limit, the ratio and whether it is met."""
    result = _result(folder)
    if result is None:
        return []
    rows = []
    for title, scenario, only, limit in GOALS:
        name = scenario_name(scenario, result["emotions"])
        for size, of_size in result["rows"].items():
            ratio = next((row["ratios"].get("tpot_ms") for row in of_size if row["name"] == name), None)
            if ratio and only in (None, int(size)):
                rows.append([title, size, f"{limit:g}", ratio_text(ratio), _verdict(ratio, limit)])
    return rows


def _verdict(ratio: dict[str, Any], limit: float) -> str:
    """That nothing is lost no measurement shows: it is met where none of it shows a loss."""
    measured = Ratio(**{**ratio, "starts": tuple(ratio["starts"])})
    word = verdict(measured, limit, at_least=False)
    return "met" if word == "open" and limit == 1.0 else word


def section(folder: Path, shape: str) -> list[str]:
    result = _result(folder)
    if result is None:
        return []
    settings, engine = result["settings"], result["engine"]
    runner = "V2" if engine.get("v2_model_runner") else "V1"
    lines = [
        "",
        f"The shape {shape}, {runner} model runner, {engine['compilation']}, CUDA graphs {engine.get('cudagraph')}, "
        f"{engine['dtype']}, prompts of {settings['prompt_tokens']} tokens, {settings['output_tokens']} generated, "
        f"{settings['rounds']} rounds{'' if result['complete'] else ' (interrupted)'}: `{result['command']}`",
        "",
    ]
    rows = []
    for size, of_size in result["rows"].items():
        for row in of_size:
            values, ratios = row["values"] or {}, row["ratios"]
            cells = [number(values.get("tokens_per_s")), ratio_text(ratios.get("tokens_per_s"))]
            cells += [number(values.get("tpot_ms"), 2), ratio_text(ratios.get("tpot_ms"))]
            cells += [number(values.get("ttft_ms"), 1), ratio_text(ratios.get("ttft_ms"))]
            rows.append([size, row["name"], *cells])
    return lines + table(["batch", "", "tokens/s", "ratio", "TPOT, ms", "ratio", "TTFT, ms", "ratio"], rows)


def _result(folder: Path) -> dict[str, Any] | None:
    path = folder / "bench" / "result.json"
    return json.loads(path.read_text()) if path.exists() else None
