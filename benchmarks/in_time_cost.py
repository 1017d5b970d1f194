"""What it costs that an emotion changes in time: seconds of batches whose requests do so, over the same batches at a
constant strength, in turns on one engine.

    scripts/env python benchmarks/in_time_cost.py [--model MODEL --circuit DIR] [--batch 16] [--starts 2] [--rounds 20]

The engine reads with a probe of random weights and knows tool calls by their markers. In each round it answers the same
prompts with one emotion for all: at a constant strength, twice; with a schedule, the same for all or another for each;
with calls spared; with a target; and with a target for one request in sixteen. Prints the geometric means of the
rounds' ratios with 95 % intervals by bootstrap over starts and rounds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rounds import Seconds, arguments, make_probe, measure, print_ratios, start

from emovllm.circuit_files import load_circuit
from emovllm.models import resolve_model
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
    parser = arguments(__doc__, "of each start")
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--ways", help="with commas between: of the ways above, only these, and the constant one")
    parser.add_argument("--record", type=Path, metavar="FILE", help="append each round's seconds, a line of JSON")
    options = parser.parse_args()
    prepare_environment()
    model = resolve_model(options.model)
    asked = ways(load_circuit(options.circuit).names[0], options.batch)
    if options.ways:
        asked = {way: asked[way] for way in (CONSTANT, *options.ways.split(","))}
    starts: list[Seconds] = []
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe"
        make_probe(model, options.circuit, probe)
        settings = {"circuit": str(options.circuit), "probe": str(probe), "tool_parser": "hermes"}
        for number in range(options.starts):
            engine = start(model, str(number), settings, Path(folder), options.dtype)
            try:
                of_engine = {way: (engine, fields) for way, fields in asked.items()}
                starts.append(measure(of_engine, options.rounds, options.tokens, number, options.record))
            finally:
                engine.close()
    print(f"{options.batch} requests of {options.tokens} tokens, {options.starts} starts of {options.rounds} rounds")
    print_ratios(starts, {way: (way, CONSTANT) for way in asked if way != CONSTANT})


if __name__ == "__main__":
    main()
