"""What emovllm adds to each step of the engine on the host: microseconds of `Coefficients.update`, without the copy to
a GPU.

    python benchmarks/host_cost.py [--requests 256]

Each figure is the median over many steps, and the least of several repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from emovllm.emotion import Target, Wire
from emovllm.engine.coefficients import Coefficients
from emovllm.engine.gains import Gains, Inputs, Reads
from emovllm.phases import BITS, Automaton, Markers
from emovllm.schedule import Schedule

NAMES = ("anger", "sadness", "happiness", "fear", "surprise", "disgust")
PROMPT = 512
VOCABULARY = 1000
LABELS = 7


class Steps:
    """A batch of `requests`, all but the plain ones steered, past its prompts. in_time: what changes in their time."""

    def __init__(self, requests: int, steered: bool = True, **in_time: Any) -> None:
        device = torch.device("cpu")
        pieces = [f"word{number}" for number in range(VOCABULARY)]
        automaton = Automaton(pieces, {"thinking": Markers(("<think>",), ("</think>",))})
        gains = Gains(requests, device, automaton=automaton, reads=Reads(LABELS, 8192))
        self.coefficients = Coefficients(len(NAMES), 8192, device, max_requests=requests, gains=gains)
        self.in_time = in_time
        self.inputs = Inputs(torch.ones(8192, dtype=torch.int64), torch.full((8192,), PROMPT))
        self.read = torch.zeros(8192, LABELS)
        self.coefficients.place("circuit", NAMES, 0)
        self.req_ids = [f"request-{number}" for number in range(requests)]
        self.scheduled = np.ones(requests, np.int32)
        self.computed = np.full(requests, PROMPT, np.int32)
        self.steered = steered
        self.number = requests
        for req_id in self.req_ids:
            self.join(req_id)
        self.decode()

    def join(self, req_id: str) -> None:
        weights = {NAMES[self.number % 6]: 0.5, NAMES[(self.number + 1) % 6]: 0.25}
        wire = Wire("circuit", weights, "generation", **self.in_time) if self.steered else None
        self.coefficients.join(req_id, wire, PROMPT)

    def decode(self) -> None:
        """One more token for each request."""
        self.computed += 1
        if self.in_time:
            self.inputs.positions[: self.number] += 1
        self.coefficients.update(self.req_ids, self.scheduled, self.computed, inputs=self.inputs)
        if self.in_time:
            self.coefficients.gains.take(self.read)

    def change(self) -> None:
        """The first request ends, and another joins, whose prompt is computed in this step."""
        self.coefficients.leave(self.req_ids[0])
        self.number += 1
        self.req_ids = [*self.req_ids[1:], f"request-{self.number}"]
        self.join(self.req_ids[-1])
        self.scheduled[-1], self.computed[-1] = PROMPT, 0
        self.coefficients.update(self.req_ids, self.scheduled, self.computed, inputs=self.inputs)
        self.scheduled[-1], self.computed[-1] = 1, PROMPT


def microseconds(step: Callable[[], None], steps: int = 200, repeats: int = 5) -> float:
    def once() -> float:
        started = time.perf_counter()
        step()
        return time.perf_counter() - started

    return min(statistics.median(once() for _ in range(steps)) for _ in range(repeats)) * 1e6


def measure(requests: int) -> dict[str, float]:
    """Microseconds per step, by the kind of step."""
    return {
        "no request is steered": microseconds(Steps(requests, steered=False).decode),
        "all are steered, steady decode": microseconds(Steps(requests).decode),
        "all are steered, one leaves and one joins": microseconds(Steps(requests).change),
        "all have a schedule": microseconds(Steps(requests, schedule=Schedule(hold=20, half_life=40)).decode),
        "all spare their thinking": microseconds(Steps(requests, muted=BITS["thinking"]).decode),
        "all have a target": microseconds(Steps(requests, target=Target(0.6, 0.5, (1,), 2.0)).decode),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=256)
    requests = parser.parse_args().requests
    print(f"| {requests} requests | microseconds per step |\n|---|---|")
    for kind, cost in measure(requests).items():
        print(f"| {kind} | {cost:.1f} |")


if __name__ == "__main__":
    main()
