"""What it costs that an emotion changes in time: seconds of batches whose requests do so, over the same batches at a
constant strength, in turns on one engine.

    scripts/env python benchmarks/in_time_cost.py [--model MODEL --circuit DIR] [--batch 16] [--starts 2] [--rounds 20]

The engine reads with a probe of random weights and knows tool calls by their markers. In each round it answers the same
prompts with one emotion for all: at a constant strength, twice; with a schedule, the same for all or another for each;
with calls spared; with a target; and with a target for one request in sixteen. Prints the geometric means of the
rounds' ratios with 95 % intervals by bootstrap over starts and rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from readout_cost import make_probe, start

from emovllm.circuit_files import load_circuit
from emovllm.models import NAME, resolve_model, shipped_circuits
from emovllm.progress import track
from emovllm_server.bench.engine import Engine
from emovllm_server.bench.ratios import ratio
from emovllm_server.serve import prepare_environment

ONE_IN = 16
CONSTANT = "constant"


def ways(emotion: str, batch: int) -> dict[str, list[dict[str, Any]]]:
    """The fields of a batch's requests."""
    steered: dict[str, Any] = {"emotion": emotion}
    target = {**steered, "emotion_target": 0.5}
    return {
        CONSTANT: [steered] * batch,
        "constant again": [steered] * batch,
        "a schedule": [{**steered, "emotion_schedule": {"hold": 8, "half_life": 16}}] * batch,
        "a schedule for each": [
            {**steered, "emotion_schedule": {"hold": 8, "half_life": 16 + number}} for number in range(batch)
        ],
        "calls spared": [{**steered, "emotion_mute": ["tools"]}] * batch,
        "a target": [target] * batch,
        "a target for one in sixteen": [target if number % ONE_IN == 0 else steered for number in range(batch)],
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
    asked = ways(load_circuit(options.circuit).names[0], options.batch)
    logs: dict[str, dict[str, list[float]]] = {way: {} for way in asked if way != CONSTANT}
    with tempfile.TemporaryDirectory() as folder:
        make_probe(model, options.circuit, Path(folder) / "probe")
        settings = {"circuit": str(options.circuit), "probe": str(Path(folder) / "probe"), "tool_parser": "hermes"}
        for number in range(options.starts):
            engine = start(model, str(number), settings, Path(folder))
            try:
                seconds = measure(engine, asked, options, number)
            finally:
                engine.close()
            for way, of_starts in logs.items():
                of_starts[str(number)] = (np.log(seconds[way]) - np.log(seconds[CONSTANT])).tolist()
    print(f"{options.batch} requests of {options.tokens} tokens, {options.starts} starts of {options.rounds} rounds")
    for way, of_starts in logs.items():
        paired = ratio(of_starts)
        print(f"{way}: {paired.mean:.4f} ({paired.low:.4f} to {paired.high:.4f})")


def measure(
    engine: Engine, asked: dict[str, list[dict[str, Any]]], options: argparse.Namespace, seed: int
) -> dict[str, list[float]]:
    """Seconds of each round, by way."""
    random = np.random.default_rng(seed)
    seconds: dict[str, list[float]] = {way: [] for way in asked}
    # The first round warms up.
    for number in track(range(options.rounds + 1), f"start {seed + 1}", total=options.rounds + 1):
        prompts = random.integers(10, 1000, (options.batch, 32)).tolist()
        for way in random.permutation(list(asked)):
            taken = engine.measure(prompts, asked[way], options.tokens)["seconds"]
            if number:
                seconds[way].append(taken)
    return seconds


if __name__ == "__main__":
    main()
