"""What `emotion_schedule` costs: seconds of batches whose requests have one, and of the same batches without, in turns.

    scripts/env python benchmarks/schedule_cost.py [--model MODEL --circuit DIR] [--batch 16] [--starts 2] [--rounds 20]

One engine at a time. In each round it answers the same prompts in every way: plain; with an emotion; with an emotion
and a schedule, the same for all, or another for each; plain but for one request in sixteen, which has an emotion, or an
emotion and a schedule. Prints the geometric means of the rounds' ratios, each to the same without schedules, with 95 %
intervals by bootstrap over starts and rounds, and that of one way to itself as the control.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emovllm.circuit_files import load_circuit
from emovllm.emotion import KEY
from emovllm.models import NAME, resolve_model, shipped_circuits
from emovllm.progress import track
from emovllm_server.bench.engine import VLLM_MODULE, Engine, environment
from emovllm_server.bench.ratios import ratio
from emovllm_server.serve import prepare_environment

ONE_IN = 16
# What is compared, with what.
PAIRS = {
    "all scheduled alike": ("scheduled", "steered"),
    "all scheduled, each another": ("scheduled apart", "steered"),
    "one in sixteen scheduled": ("one scheduled", "one steered"),
    "control: steered again": ("steered again", "steered"),
}


def ways(emotion: str, batch: int) -> dict[str, list[dict[str, Any]]]:
    """The fields of a batch's requests."""
    steered: dict[str, Any] = {"emotion": emotion}
    scheduled = {**steered, "emotion_schedule": {"hold": 8, "half_life": 16}}
    apart = [{**steered, "emotion_schedule": {"hold": 8, "half_life": 16 + number}} for number in range(batch)]

    def one(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [dict(fields) if number % ONE_IN == 0 else {} for number in range(batch)]

    return {
        "steered": [steered] * batch,
        "steered again": [steered] * batch,
        "scheduled": [scheduled] * batch,
        "scheduled apart": apart,
        "one steered": one(steered),
        "one scheduled": one(scheduled),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the default model")
    parser.add_argument("--circuit", type=Path, default=shipped_circuits() / NAME)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20, help="of each start")
    options = parser.parse_args()
    prepare_environment()
    model = resolve_model(options.model)
    emotion = load_circuit(options.circuit).names[0]
    logs: dict[str, dict[str, list[float]]] = {pair: {} for pair in PAIRS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.starts):
            engine = start(model, options.circuit, Path(folder) / f"{number}.log")
            try:
                taken = measure(engine, ways(emotion, options.batch), options, number)
            finally:
                engine.close()
            for pair, (one, other) in PAIRS.items():
                logs[pair][str(number)] = (np.log(taken[one]) - np.log(taken[other])).tolist()
    print(f"{options.batch} requests of {options.tokens} tokens, {options.starts} starts of {options.rounds} rounds")
    for pair, of_starts in logs.items():
        paired = ratio(of_starts)
        print(f"{pair}: {paired.mean:.4f} ({paired.low:.4f} to {paired.high:.4f})")


def start(model: str, circuit: Path, log: Path) -> Engine:
    arguments = {
        "model": model,
        "max_model_len": 512,
        "max_num_seqs": 64,
        "disable_log_stats": False,
        "additional_config": {KEY: {"circuit": str(circuit)}},
    }
    env = {**environment(steered=True), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return Engine("engine", VLLM_MODULE, arguments, env, log)


def measure(
    engine: Engine, fields: Mapping[str, list[dict[str, Any]]], options: argparse.Namespace, seed: int
) -> dict[str, list[float]]:
    """Seconds of each round, by way."""
    random = np.random.default_rng(seed)
    seconds: dict[str, list[float]] = {way: [] for way in fields}
    # The first round warms up.
    for number in track(range(options.rounds + 1), f"start {seed + 1}", total=options.rounds + 1):
        prompts = random.integers(10, 1000, (options.batch, 32)).tolist()
        for way in random.permutation(list(fields)):
            taken = engine.measure(prompts, fields[way], options.tokens)["seconds"]
            if number:
                seconds[way].append(taken)
    return seconds


if __name__ == "__main__":
    main()
