"""Is what the engine generates on this GPU what Hugging Face with hooks generates? `python exactness.py --out FILE`.

In float32, without TF32, greedy tokens must be equal and log-probabilities within 1e-3, in every mode of the engine. In
bfloat16 no two implementations agree on every token, so steered requests are compared with the reference beside plain
ones, and the two should differ from it alike.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm.emotion import resolve
from emovllm.models import default_model
from emovllm_offline.model.control import Control
from support.circuits import random_circuit
from support.engine import Ask, Engine, Reply, mixed_batch

TOLERANCE = 1e-3
TOKENS = 48
V1, V2 = {"VLLM_USE_V2_MODEL_RUNNER": "0"}, {"VLLM_USE_V2_MODEL_RUNNER": "1"}
PIECEWISE = {"compilation_config": {"cudagraph_mode": "PIECEWISE"}}
# FlashAttention has no float32. Triton's products take TF32 unless told otherwise.
FLOAT32 = {"TRITON_F32_DEFAULT": "ieee", "VLLM_FLOAT32_MATMUL_PRECISION": "highest"}
# Arguments and environment of each engine in float32.
MODES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "V2, full and piecewise graphs": ({}, V2),
    "V2, piecewise graphs": (PIECEWISE, V2),
    "V2, eager": ({"enforce_eager": True}, V2),
    "V2, prompts in chunks of 16": ({"max_num_batched_tokens": 16, "max_num_seqs": 16}, V2),
    "V2, preemption": ({"num_gpu_blocks_override": 40, "enable_prefix_caching": False}, V2),
    "V1, full and piecewise graphs": ({}, V1),
    "V1, piecewise graphs": (PIECEWISE, V1),
    "V1, preemption": ({"num_gpu_blocks_override": 40, "enable_prefix_caching": False}, V1),
}
# Lines of the engine's log that tell what ran.
_FACTS = {
    "attention": r"Using (\w+) (?:attention )?backend",
    "graphs": r"'cudagraph_mode': <CUDAGraphMode\.(\w+)",
    "runner": r"Using (V2) Model Runner",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    parser.add_argument("--logs", type=Path, default=Path("/tmp/emovllm-kit/logs"), help="default: %(default)s")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--modes", type=lambda text: text.split(";"), default=list(MODES), help="default: all; with ;")
    parser.add_argument("--without-bfloat16", action="store_true")
    parser.add_argument("--engine-args", type=json.loads, default={}, metavar="JSON", help="for all engines")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--jobs", type=int, default=5, help="engines at once (default: %(default)s)")
    args = parser.parse_args()
    args.logs.mkdir(parents=True, exist_ok=True)

    model = str(default_model())
    circuit = random_circuit(model, args.logs / "circuit")
    asks = mixed_batch(prose(model))
    bare = [Ask(ask.prompt) for ask in asks]

    def engine(name: str, dtype: str, steered: bool, config: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
        """One engine's replies, and what its log says. An engine that fails is reported, and the others go on."""
        log = args.logs / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}.log"
        settings = {"circuit": str(circuit), "allow_untested_vllm": True}
        config = {
            "model": model,
            "dtype": dtype,
            "max_model_len": 512,
            "max_num_seqs": 64,
            "seed": 0,
            "disable_log_stats": False,
            "gpu_memory_utilization": 0.05,
            "kv_cache_memory_bytes": 2 * 2**30,
            **({"additional_config": {"emovllm": settings}} if steered else {}),
            **args.engine_args,
            **config,
        }
        # A cache of its own: engines that start together would otherwise load what another is still writing.
        env = {**env, "VLLM_CACHE_ROOT": str(args.logs / f"{log.stem}-cache")}
        start = time.perf_counter()
        try:
            with Engine(log, env, **config) as running:
                replies = running.generate(asks if steered else bare, args.tokens)
                preemptions = running.metric("vllm:num_preemptions")
            found: dict[str, Any] = {"replies": replies, "preemptions": preemptions}
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        found |= {"seconds": round(time.perf_counter() - start), **facts(log)}
        return found

    made: dict[str, Any] = {"machine": machine(args.device), "tokens": args.tokens, "requests": len(asks)}
    made |= {"float32": {}, "bfloat16": {}}
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {
            pool.submit(engine, name, "float32", True, MODES[name][0], {**FLOAT32, **MODES[name][1]}): name
            for name in args.modes
        }
        if not args.without_bfloat16:
            for kind in ("steered", "plain"):
                runs[pool.submit(engine, kind, "bfloat16", kind == "steered", {}, V2)] = kind
        # While the engines start.
        reference = References(model, load_circuit(circuit), args.device, args.tokens)
        batches = {"steered": asks, "plain": bare}
        wanted = {kind: reference.replies("float32", batch) for kind, batch in batches.items()}
        made["moved"] = sum(a.tokens != b.tokens for a, b in zip(wanted["steered"], wanted["plain"], strict=True))
        rounded = {}
        if not args.without_bfloat16:
            rounded = {kind: reference.replies("bfloat16", batch) for kind, batch in batches.items()}
        for kind, replies in rounded.items():
            made["bfloat16"][f"reference, {kind}"] = {"against float32": compare(replies, wanted[kind])}
        for run in as_completed(runs):
            name, found = runs[run], run.result()
            replies = found.pop("replies", None)
            if name in MODES:
                made["float32"][name] = judged(name, found, replies, wanted["steered"])
            else:
                made["bfloat16"][name] = found
                if replies is not None:
                    found["against float32"] = compare(replies, wanted[name])
                    found["against bfloat16"] = compare(replies, rounded[name])
            # As soon as it is there: time may run out.
            args.out.write_text(json.dumps(made, indent=1) + "\n")
            print(f"{name}: {found}")
    exact = [row["exact"] for row in made["float32"].values()]
    print(f"{sum(exact)} of {len(exact)} modes are exact")
    raise SystemExit(0 if all(exact) else 1)


def judged(name: str, found: dict[str, Any], replies: list[Reply] | None, wanted: list[Reply]) -> dict[str, Any]:
    if replies is not None:
        found |= compare(replies, wanted)
        if "preemption" in name and not found["preemptions"]:
            found["error"] = "nothing was preempted"
    found["exact"] = "error" not in found and found["equal"] == 1.0 and found["error_max"] < TOLERANCE
    return found


class References:
    """Hugging Face with hooks, one request at a time."""

    def __init__(self, model: str, circuit: Circuit, device: str, tokens: int) -> None:
        self._model, self._circuit, self._device, self._tokens = model, circuit, device, tokens

    def replies(self, dtype: str, asks: list[Ask]) -> list[Reply]:
        torch.backends.cuda.matmul.allow_tf32 = False
        # Attention by plain products: no kernel of its own, with a rounding of its own.
        loaded = AutoModelForCausalLM.from_pretrained(
            self._model, dtype=getattr(torch, dtype), attn_implementation="eager"
        )
        control = Control(loaded.to(self._device).eval(), self._circuit)
        return [
            Reply(*control.generate(ask.prompt, resolve(ask.fields, self._circuit.spec), self._tokens)) for ask in asks
        ]


def compare(replies: list[Reply], wanted: list[Reply]) -> dict[str, float]:
    """Tokens up to where two replies part, as a share of all, and the log-probabilities of these tokens: beyond, the
    contexts differ."""
    common, errors = 0, []
    for reply, other in zip(replies, wanted, strict=True):
        same = np.array(reply.tokens) == np.array(other.tokens)
        until = len(same) if same.all() else int(same.argmin())
        common += until
        errors += [abs(a - b) for a, b in zip(reply.logprobs[:until], other.logprobs[:until], strict=True)]
    # With nothing in common there is no error to measure, and nothing to be content with.
    return {
        "equal": common / sum(len(other.tokens) for other in wanted),
        "error_max": max(errors, default=float("inf")),
        "error_mean": float(np.mean(errors)) if errors else float("inf"),
    }


def prose(model: str) -> Callable[[int, int], list[int]]:
    """`text(seed, length)`: token ids of ordinary prose, of exactly this length, different for each seed."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    sentence = (
        "On day {n} the neighbours asked me to look after their {what} while everybody else went down to the river. I "
        "wrote down who had left, closed the gate behind the last one, and sat on the step with a cup of tea. Around "
        "noon a van stopped at number {n}; the driver unloaded {n} boxes, checked a list, and drove off. "
    )
    things = ["dog", "bicycles", "garden", "old piano", "letters"]

    def text(seed: int, length: int) -> list[int]:
        once = sentence.format(n=3 + seed, what=things[seed % len(things)])
        ids: list[int] = tokenizer(once * (1 + length // 50), add_special_tokens=False)["input_ids"]
        return ids[-length:]

    return text


def facts(log: Path) -> dict[str, str]:
    text = log.read_text() if log.exists() else ""
    return {name: found[1] for name, pattern in _FACTS.items() if (found := re.search(pattern, text))}


def machine(device: str) -> dict[str, str]:
    import vllm

    gpu = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    return {"gpu": gpu, "vllm": vllm.__version__, "torch": torch.__version__, "cores": str(os.cpu_count())}


if __name__ == "__main__":
    main()
