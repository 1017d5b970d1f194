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

import numpy as np
import torch

from emovllm.emotion import Wire
from emovllm.engine.coefficients import Coefficients

NAMES = ("anger", "sadness", "happiness", "fear", "surprise", "disgust")
PROMPT = 512


class Steps:
    """A batch of `requests`, all but the plain ones steered, past its prompts."""

    def __init__(self, requests: int, steered: bool = True) -> None:
        self.coefficients = Coefficients(len(NAMES), 8192, torch.device("cpu"), max_requests=requests)
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
        wire = Wire("circuit", weights, "generation") if self.steered else None
        self.coefficients.join(req_id, wire, PROMPT)

    def decode(self) -> None:
        """One more token for each request."""
        self.computed += 1
        self.coefficients.update(self.req_ids, self.scheduled, self.computed)

    def change(self) -> None:
        """The first request ends, and another joins, whose prompt is computed in this step."""
        self.coefficients.leave(self.req_ids[0])
        self.number += 1
        self.req_ids = [*self.req_ids[1:], f"request-{self.number}"]
        self.join(self.req_ids[-1])
        self.scheduled[-1], self.computed[-1] = PROMPT, 0
        self.coefficients.update(self.req_ids, self.scheduled, self.computed)
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
