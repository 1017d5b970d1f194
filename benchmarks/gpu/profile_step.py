"""What one decode step runs on the GPU, plain and steered: `python profile_step.py MODEL CIRCUIT --out FILE`.

Counts the kernels of a step under full CUDA graphs and without graphs, by name. Steering is free of kernels of its own
where the injection was fused with the residual add and norm that follow it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

STEPS = 16
# By then all prompts are computed.
PREFILL_STEPS = 4
GRAPHS = {"full CUDA graphs": "FULL_AND_PIECEWISE", "compiled, no graphs": "NONE"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("circuit")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    parser.add_argument("--logs", type=Path, default=Path("/tmp/emovllm-kit/logs"), help="default: %(default)s")
    parser.add_argument("--batch-sizes", type=lambda text: [int(n) for n in text.split(",")], default=[1, 64])
    parser.add_argument("--engine-args", type=json.loads, default={}, metavar="JSON", help="for all engines")
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=list(GRAPHS))
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        engine(json.loads(args.engine), args.batch_sizes)
        return
    args.logs.mkdir(parents=True, exist_ok=True)
    settings = {"circuit": args.circuit, "allow_untested_vllm": True}

    def start(graphs: str, steered: bool) -> subprocess.Popen[str]:
        config = {
            "model": args.model,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "dtype": "bfloat16",
            "max_model_len": 1024,
            "max_num_seqs": 256,
            "gpu_memory_utilization": 0.1,
            "kv_cache_memory_bytes": 10 * 2**30,
            "compilation_config": {"cudagraph_mode": GRAPHS[graphs]},
            **({"additional_config": {"emovllm": settings}} if steered else {}),
            **args.engine_args,
        }
        name = f"profile {graphs} {'steered' if steered else 'plain'}".replace(" ", "-").replace(",", "")
        sizes = ",".join(map(str, args.batch_sizes))
        command = [sys.executable, __file__, args.model, args.circuit, "--out", str(args.out), "--batch-sizes", sizes]
        environment = {
            **os.environ,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_PLUGINS": "emovllm" if steered else "",
            "VLLM_CACHE_ROOT": str(args.logs / f"{name}-cache"),
        }
        with (args.logs / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                [*command, "--engine", json.dumps({"steered": steered, **config})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )

    # They start together, and are measured one after another.
    processes = {(graphs, steered): start(graphs, steered) for graphs in args.graphs for steered in (False, True)}
    made: dict[str, Any] = {"model": Path(args.model).name, "modes": {}}
    try:
        with ThreadPoolExecutor() as pool:
            about = list(pool.map(read, processes.values()))
        for (graphs, steered), process in processes.items():
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            kind = "steered" if steered else "plain"
            made["modes"].setdefault(graphs, {})[kind] = read(process)["sizes"]
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    made |= {**about[0], "differences": {graphs: differences(of, about[0]) for graphs, of in made["modes"].items()}}
    args.out.write_text(json.dumps(made, indent=1) + "\n")
    for graphs, by_size in made["differences"].items():
        for size, row in by_size.items():
            print(f"{graphs}, batch {size}: {row['extra_per_layer']:+.2f} kernels per layer, step {row['time']:.3f}x")


def read(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("an engine ended; see its log")
    reply: dict[str, Any] = json.loads(line)
    return reply


def differences(of: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Steered against plain, by batch size: kernels more per layer, by name, and the ratio of a step's time."""
    rows = {}
    for size, plain in of["plain"].items():
        steered = of["steered"][size]
        names = sorted(plain["kernels"].keys() | steered["kernels"].keys())
        changed = {name: steered["kernels"].get(name, 0) - plain["kernels"].get(name, 0) for name in names}
        rows[size] = {
            "extra_per_layer": (sum(steered["kernels"].values()) - sum(plain["kernels"].values())) / about["layers"],
            "time": steered["step_ms"] / plain["step_ms"],
            "changed": {name: change for name, change in changed.items() if change},
        }
    return rows


def engine(config: dict[str, Any], sizes: list[int]) -> None:
    """One engine's end: says that it is ready, waits for a line, measures, prints a line of JSON."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM logs to standard output
    steered = config.pop("steered")
    import torch
    import vllm

    llm = vllm.LLM(**config)
    settings = llm.llm_engine.vllm_config
    layers = settings.model_config.hf_text_config.num_hidden_layers
    gpu = torch.cuda.is_available()
    emotions = [{"emotion": name} for name in ("anger", "fear")] if steered else [{}]
    for size in sizes:
        decode(llm, emotions, size, 8)
    about = {"layers": layers, "gpu": torch.cuda.get_device_name() if gpu else "none"}
    about |= {"vllm": vllm.__version__, "v2_model_runner": bool(settings.use_v2_model_runner)}
    replies.write(json.dumps(about) + "\n")
    if not sys.stdin.readline():  # nobody waits any more
        return
    replies.write(json.dumps({"sizes": {size: measure(llm, emotions, size, gpu) for size in sizes}}) + "\n")
    # Until it is killed: its end would be in the way of the next engine's measurement.
    sys.stdin.readline()


def measure(llm: Any, emotions: list[dict[str, Any]], size: int, gpu: bool) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    times = decode(llm, emotions, size, 10 * STEPS)
    profiler = profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU])
    decode(llm, emotions, size, STEPS, profiler)
    kernels: Counter[str] = Counter()
    microseconds: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type.name == ("CUDA" if gpu else "CPU") and not event.is_user_annotation:
            kernels[event.name] += 1
            microseconds[event.name] += event.time_range.elapsed_us()
    if not kernels:
        raise SystemExit("the profiler saw no kernel")
    return {
        "step_ms": 1e3 * statistics.median(times),
        "kernels": {name: count / STEPS for name, count in kernels.most_common()},
        "microseconds": {name: round(total / STEPS, 2) for name, total in microseconds.most_common()},
    }


def decode(
    llm: Any,
    emotions: list[dict[str, Any]],
    size: int,
    steps: int,
    window: AbstractContextManager[Any] | None = None,
) -> list[float]:
    """Seconds of each of `steps` steps that decode `size` requests and nothing else, taken within `window`."""
    import torch
    from vllm import SamplingParams, TokensPrompt

    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    engine = llm.llm_engine
    for number in range(size):
        params = SamplingParams(
            temperature=0,
            # More than are taken: no request ends while it is measured.
            max_tokens=steps + 2 * PREFILL_STEPS,
            ignore_eos=True,
            detokenize=False,
            extra_args=emotions[number % len(emotions)] or None,
        )
        engine.add_request(str(number), TokensPrompt(prompt_token_ids=[7 + number % 97] * 32), params)
    for _ in range(PREFILL_STEPS):
        engine.step()
    times = []
    synchronize()
    with window or nullcontext():
        for _ in range(steps):
            start = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - start)
        synchronize()
    while engine.has_unfinished_requests():
        engine.step()
    return times


if __name__ == "__main__":
    main()
