"""What it costs inside an engine that an emotion changes in time: the time that a step spends in what sets coefficients
and takes readings, over the time of the step. Where other programs disturb a machine by more than it costs,
`in_time_cost.py` cannot tell it, and this can.

    scripts/env python benchmarks/in_time_inside.py [--model MODEL --circuit DIR] [--batch 16] [--rounds 20]

One engine in this process answers the same batches in turns, with a constant strength, a schedule for each, calls
spared, and a target. Of each batch counts the median over its steps that decode; prints the medians of the rounds, and
what is more than at a constant strength as a share of the step, with a 95 % interval over rounds (Student's t). What
our code does to the time of other code, by what it leaves in the caches, is not in it.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from in_time_cost import CONSTANT, ways
from rounds import PROMPT_TOKENS, arguments, make_probe

from emovllm.circuit_files import load_circuit
from emovllm.models import resolve_model
from emovllm.progress import track
from emovllm_offline.intervals import mean_interval
from emovllm_server.serve import prepare_environment

WAYS = (CONSTANT, "a schedule for each", "calls spared", "a target")


class Watch:
    """Seconds in each step's calls, and between steps."""

    def __init__(self) -> None:
        self.inside: list[float] = []
        self.begun: list[float] = []

    def clear(self) -> None:
        self.inside.clear()
        self.begun.clear()

    def count(self, owner: type, name: str, begins: bool) -> None:
        """Counts the calls of a method; `begins`: a step begins with it."""
        method = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = method(*args, **kwargs)
            taken = time.perf_counter() - started
            if begins:
                self.begun.append(started)
                self.inside.append(taken)
            else:
                self.inside[-1] += taken
            return result

        setattr(owner, name, counted)

    def medians(self) -> tuple[float, float]:
        """Inside, and of whole steps, but the first two, which read the prompts."""
        steps = [after - before for before, after in zip(self.begun[2:], self.begun[3:], strict=False)]
        return statistics.median(self.inside[2:]), statistics.median(steps)


def engine(model: str, circuit: Path, folder: Path, dtype: str) -> Callable[[list[list[int]], list[Any], int], None]:
    from vllm import SamplingParams

    from emovllm import LLM

    make_probe(model, circuit, folder)
    llm = LLM(
        model,
        circuit=circuit,
        probe=folder,
        additional_config={"emovllm": {"tool_parser": "hermes"}},
        dtype=dtype,
        max_model_len=512,
        max_num_seqs=64,
    )

    def answer(prompts: list[list[int]], fields: list[Any], tokens: int) -> None:
        params = [
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=asked) for asked in fields
        ]
        llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)

    return answer


def main() -> None:
    options = arguments(__doc__).parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    prepare_environment()
    from emovllm.engine.coefficients import Coefficients
    from emovllm.engine.gains import Gains

    watch = Watch()
    watch.count(Coefficients, "update", begins=True)
    watch.count(Gains, "take", begins=False)
    asked = ways(load_circuit(options.circuit).names[0], options.batch)
    random = np.random.default_rng(0)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        answer = engine(resolve_model(options.model), options.circuit, Path(folder), options.dtype)
        for number in track(range(options.rounds + 1), "rounds", total=options.rounds + 1):
            prompts = random.integers(10, 1000, (options.batch, PROMPT_TOKENS)).tolist()
            for way in random.permutation(WAYS).tolist():
                watch.clear()
                answer(prompts, asked[way], options.tokens)
                if number:  # the first warms up
                    found[way].append(watch.medians())
    print_shares(found)


def print_shares(found: dict[str, list[tuple[float, float]]]) -> None:
    inside = {way: np.array([of_round[0] for of_round in rounds]) for way, rounds in found.items()}
    step = np.array([of_round[1] for of_round in found[CONSTANT]])
    print("| | microseconds a step | more than constant, of a step |\n|---|---:|---:|")
    for way, values in inside.items():
        mean, low, high = mean_interval(100 * (values - inside[CONSTANT]) / step)
        told = "" if way == CONSTANT else f"{mean:.2f}% [{low:.2f}, {high:.2f}]"
        print(f"| {way} | {1e6 * np.median(values):.0f} | {told} |")
    print(f"\na step takes {1e3 * np.median(step):.1f} ms, {len(step)} rounds")


if __name__ == "__main__":
    main()
