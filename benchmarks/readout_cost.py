"""What a read-out costs: seconds of batches with requests that ask, over the same batches with none, in turns.

    scripts/env python benchmarks/readout_cost.py [--model MODEL --circuit DIR] [--batch 16] [--starts 2] [--rounds 12]

An engine reads with a probe of random weights (its values cost nothing). In each round it answers the same prompts:
with no request that asks, with one in sixteen, and with all, each of every token. Prints the geometric means of the
rounds' ratios with 95 % intervals by bootstrap over starts and rounds. With `--beside` a second engine that does not
read answers as well: two engines that are alike differ by some per cent from start to start.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rounds import Seconds, Way, arguments, make_probe, measure, print_ratios, start

from emovllm.models import resolve_model
from emovllm_server.serve import prepare_environment

ASKS = {"emotion_readout": "tokens"}
WITHOUT, NOBODY = "without", "nobody asks"
# Of how many requests one asks.
ASKING = {"one in sixteen asks": 16, "all ask": 1}


def main() -> None:
    parser = arguments(__doc__, "of each start")
    parser.set_defaults(tokens=64, rounds=12)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--beside", action="store_true", help="an engine that does not read answers as well")
    parser.add_argument("--record", type=Path, metavar="FILE", help="append each round's seconds, a line of JSON")
    options = parser.parse_args()
    prepare_environment()
    model = resolve_model(options.model)
    batch = options.batch
    starts: list[Seconds] = []
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe"
        make_probe(model, options.circuit, probe)
        circuit = {"circuit": str(options.circuit)}
        kinds = {"on": {**circuit, "probe": str(probe)}, **({"off": circuit} if options.beside else {})}
        for number in range(options.starts):
            engines = {}
            try:
                # Each kind starts first in turn.
                for name in sorted(kinds, reverse=bool(number % 2)):
                    engines[name] = start(model, f"{number}-{name}", kinds[name], Path(folder), options.dtype)
                on = engines["on"]
                ways: dict[str, Way] = {NOBODY: (on, [{}] * batch)}
                for way, every in ASKING.items():
                    ways[way] = (on, [{} if request % every else ASKS for request in range(batch)])
                if "off" in engines:
                    ways[WITHOUT] = (engines["off"], [{}] * batch)
                starts.append(measure(ways, options.rounds, options.tokens, number, options.record))
            finally:
                for engine in engines.values():
                    engine.close()
    print(f"{batch} requests of {options.tokens} tokens, {options.starts} starts of {options.rounds} rounds: time")
    pairs = {f"{way}, over nobody": (way, NOBODY) for way in ASKING}
    if options.beside:
        pairs |= {f"{way}, over the engine without": (way, WITHOUT) for way in (NOBODY, *ASKING)}
    print_ratios(starts, pairs)


if __name__ == "__main__":
    main()
