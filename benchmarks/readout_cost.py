"""What a read-out costs: tokens per second of engines with and without one, and with requests that ask, in turns.

    scripts/env python benchmarks/readout_cost.py [--model MODEL --circuit DIR] [--batch 16] [--starts 2] [--rounds 12]

Two engines of the same model and circuit, of which one reads with a probe of random weights (its values cost nothing).
In each round both answer the same prompts: without a read-out, and on the engine that reads: with none that asks, one
request in sixteen, and all, each of every token. Prints the geometric means of the rounds' ratios, to the engine
without and to the same engine where nobody asks, with 95 % intervals by bootstrap over starts and rounds. Two engines
that are alike differ by some per cent from start to start: the second ratio knows nothing of that.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from emovllm.circuit_files import load_circuit
from emovllm.emotion import KEY
from emovllm.models import NAME, resolve_model, shipped_circuits
from emovllm.probe import Probe, ProbeSpec, save_probe
from emovllm.progress import track
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import load
from emovllm_offline.model.spec import model_fingerprint
from emovllm_server.bench.engine import VLLM_MODULE, Engine, environment
from emovllm_server.bench.ratios import ratio
from emovllm_server.serve import prepare_environment

ASKS = {"emotion_readout": "tokens"}
LABELS = ("neutral", "anger", "sadness", "happiness", "fear", "surprise", "disgust")
# Of an engine, and of how many requests one asks.
WITHOUT, NOBODY = "without", "nobody asks"
WAYS = {WITHOUT: 0, NOBODY: 0, "one in sixteen asks": 16, "all ask": 1}


def make_probe(model: str, circuit: Path, folder: Path) -> None:
    """Of the layer in the middle, of random weights."""
    spec = load_circuit(circuit).spec.model
    decoder = find_decoder(load(model)[0])
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    size = spec.hidden_size
    layer = spec.num_hidden_layers // 2
    probe = Probe(
        ProbeSpec(model=spec, labels=LABELS, layers=(layer,), layer=layer),
        mean=normal(1, size),
        scale=np.ones((1, size), np.float32),
        weight=normal(1, len(LABELS), size),
        bias=normal(1, len(LABELS)),
        fingerprint=model_fingerprint(decoder),
    )
    save_probe(probe, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the default model")
    parser.add_argument("--circuit", type=Path, default=shipped_circuits() / NAME)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12, help="of each start")
    options = parser.parse_args()
    prepare_environment()
    model = resolve_model(options.model)
    with tempfile.TemporaryDirectory() as folder:
        make_probe(model, options.circuit, Path(folder) / "probe")
        ours = {"circuit": str(options.circuit)}
        reads = {**ours, "probe": str(Path(folder) / "probe")}
        kinds = {"off": ours, "on": reads}
        logs: dict[str, dict[str, list[float]]] = {}
        for number in range(options.starts):
            # Each kind starts first in turn.
            engines: dict[str, Engine] = {}
            try:
                for name in sorted(kinds, reverse=bool(number % 2)):
                    engines[name] = start(model, f"{number}-{name}", kinds[name], Path(folder))
                for label, values in measure(engines, options, number).items():
                    logs.setdefault(label, {})[str(number)] = values
            finally:
                for engine in engines.values():
                    engine.close()
    print(
        f"{options.batch} requests of {options.tokens} tokens, {options.starts} starts of {options.rounds} rounds: time"
    )
    for label, of_starts in logs.items():
        paired = ratio(of_starts)
        print(f"{label}: {paired.mean:.4f} ({paired.low:.4f} to {paired.high:.4f})")


def start(model: str, name: str, settings: dict[str, Any], folder: Path) -> Engine:
    arguments = {
        "model": model,
        "max_model_len": 512,
        "max_num_seqs": 64,
        "disable_log_stats": False,
        "additional_config": {KEY: settings},
    }
    env = {**environment(steered=True), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return Engine(name, VLLM_MODULE, arguments, env, folder / f"{name}.log")


def measure(engines: dict[str, Engine], options: argparse.Namespace, seed: int) -> dict[str, list[float]]:
    """Logarithms of the rounds' ratios, by what is compared."""
    random = np.random.default_rng(seed)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    # The first round warms up.
    for number in track(range(options.rounds + 1), f"start {seed + 1}", total=options.rounds + 1):
        prompts = random.integers(10, 1000, (options.batch, 32)).tolist()
        for way in random.permutation(list(WAYS)):
            every = WAYS[way]
            fields = [ASKS if every and request % every == 0 else {} for request in range(options.batch)]
            taken = engines["off" if way == WITHOUT else "on"].measure(prompts, fields, options.tokens)["seconds"]
            if number:
                seconds[way].append(taken)
    times = {way: np.log(values) for way, values in seconds.items()}
    over = {f"{way}, over the engine without": times[way] - times[WITHOUT] for way in WAYS if way != WITHOUT}
    own = {f"{way}, over nobody": times[way] - times[NOBODY] for way in WAYS if way not in (WITHOUT, NOBODY)}
    return {label: values.tolist() for label, values in (over | own).items()}


if __name__ == "__main__":
    main()
