"""Rounds of one engine or several: the same prompts answered in several ways, in turns, and the ratios of the times."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emovllm.circuit_files import load_circuit
from emovllm.emotion import KEY
from emovllm.models import NAME, shipped_circuits
from emovllm.probe import Probe, ProbeSpec, save_probe
from emovllm.progress import track
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import load
from emovllm_offline.model.spec import model_fingerprint
from emovllm_server.bench.engine import VLLM_MODULE, Engine, environment
from emovllm_server.bench.ratios import ratio

LABELS = ("neutral", "anger", "sadness", "happiness", "fear", "surprise", "disgust")
PROMPT_TOKENS = 32

# An engine and the fields of the requests of a batch.
Way = tuple[Engine, list[dict[str, Any]]]
# By way, of each round: the seconds of the batch, and of its median step that decodes.
Seconds = Mapping[str, Sequence[tuple[float, float]]]


def arguments(about: str | None, rounds: str | None = None) -> argparse.ArgumentParser:
    """What these benchmarks are asked alike. about: their docstring. rounds: of what these are."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the default model")
    parser.add_argument("--circuit", type=Path, default=shipped_circuits() / NAME)
    parser.add_argument("--dtype", default="auto", help="of the weights (float32: without AVX-512)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20, help=rounds)
    return parser


def make_probe(model: str, circuit: Path, folder: Path) -> None:
    """Of the layer in the middle, of random weights: its values cost nothing."""
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


def start(model: str, name: str, settings: dict[str, Any], folder: Path, dtype: str = "auto") -> Engine:
    """With our plugin. dtype: of the weights. Raises: BenchError."""
    arguments = {
        "model": model,
        "dtype": dtype,
        "max_model_len": 512,
        "max_num_seqs": 64,
        "disable_log_stats": False,
        "additional_config": {KEY: settings},
    }
    env = {**environment(steered=True), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return Engine(name, VLLM_MODULE, arguments, env, folder / f"{name}.log")


def measure(ways: Mapping[str, Way], rounds: int, tokens: int, seed: int, record: Path | None = None) -> Seconds:
    """In each round all ways answer the same random prompts with `tokens` tokens each, in random order; one round
    before them warms up.

    record: each round is appended to it, a line of JSON.
    """
    random = np.random.default_rng(seed)
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    batch = len(next(iter(ways.values()))[1])
    for number in track(range(rounds + 1), f"start {seed + 1}", total=rounds + 1):
        prompts = random.integers(10, 1000, (batch, PROMPT_TOKENS)).tolist()
        taken = {}
        for way in random.permutation(list(ways)):
            engine, fields = ways[way]
            reply = engine.measure(prompts, fields, tokens)
            taken[str(way)] = reply["seconds"], float(np.median(np.diff(reply["arrivals"], axis=1)))
        if not number:
            continue
        for way, value in taken.items():
            seconds[way].append(value)
        if record is not None:
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"start": seed, "round": number, **taken}) + "\n")
    return seconds


def print_ratios(starts: Sequence[Seconds], pairs: Mapping[str, tuple[str, str]]) -> None:
    """The geometric means of the rounds' ratios with 95% intervals by bootstrap over starts and rounds: of the
    batches' seconds, and of their median steps', which what else the machine does at times disturbs less.

    pairs: of the label that is printed, the way and the one that it is held against.
    """
    for label, (way, other) in pairs.items():
        texts = []
        for column in range(2):
            logs = {
                str(number): np.log([row[column] for row in seconds[way]])
                - np.log([row[column] for row in seconds[other]])
                for number, seconds in enumerate(starts)
            }
            paired = ratio({number: values.tolist() for number, values in logs.items()})
            texts.append(f"{paired.mean:.4f} ({paired.low:.4f} to {paired.high:.4f})")
        print(f"{label}: {texts[0]}; the median step {texts[1]}")
