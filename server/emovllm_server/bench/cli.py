"""`emovllm bench`: its options. Heavy imports wait until it runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

DESCRIPTION = """Plain vLLM without the plugin against emovllm, interleaved on this machine: no emotion, one emotion,
all emotions mixed, 256 distinct blends and strengths; tokens/s, time to first token, time per output token, inter-token
p99; the hit rate of a shared prefix; and Hugging Face generate with hooks. Prints ratios with their spread, beside that
of two plain engines; writes result.json, result.md and result.png. Interrupted, it reports what is there; run again,
it goes on."""

# With the default model on two cores: about half an hour, and seven minutes.
FULL = {"rounds": 16, "starts": 2, "hf_rounds": 3, "batch_sizes": (1, 8, 64)}
QUICK = {"rounds": 3, "starts": 1, "hf_rounds": 2, "batch_sizes": (1, 8, 16)}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `bench` to its parser."""
    parser.description = DESCRIPTION
    add = parser.add_argument
    add("model", nargs="?", help="a folder or Hugging Face id (default: the default model with its circuit)")
    add("--circuit", help="the circuit: a folder, or a Hugging Face repository id")
    add("--quick", action="store_true", help="under 10 minutes with the default model on two cores")
    add("--batch-sizes", type=_sizes, metavar="N,N,...", help="default: 1,8,64 (quick: 1,8,16)")
    add("--rounds", type=_count, metavar="N", help="of each start (default: 16; quick: 3)")
    add(
        "--starts",
        type=_count,
        metavar="N",
        help="how often engines are started afresh: starts differ (default: 2; quick: 1)",
    )
    add("--prompt-tokens", type=_count, default=64, metavar="N", help="of every request (default: 64)")
    add("--output-tokens", type=_count, default=64, metavar="N", help="of every request (default: 64)")
    add("--prefix-tokens", type=_count, default=512, metavar="N", help="of the shared prefix (default: 512)")
    add("--without-hf", action="store_true", help="leave out Hugging Face")
    add("--dtype", default="auto", help="of all engines (default: the model's)")
    add("--max-model-len", type=_count, metavar="N", help="of all engines (default: what the requests need)")
    add("--engine-args", type=_object, default={}, metavar="JSON", help="arguments of vllm.LLM, for all engines alike")
    add(
        "--env",
        type=_variable,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="environment variable of all engines; repeatable",
    )
    add("--seed", type=int, default=0, metavar="N", help="of prompts, blends and order (default: 0)")
    add("--out", metavar="DIR", help="default: emovllm-bench (quick: emovllm-bench-quick)")
    add("--fresh", action="store_true", help="forget what --out holds")


def main(args: argparse.Namespace) -> int:
    """Runs `bench`; returns the exit status."""
    from emovllm.errors import BenchError
    from emovllm_server.bench.command import bench

    chosen = QUICK if args.quick else FULL
    given = {name: value for name in chosen if (value := getattr(args, name, None)) is not None}
    sizes: dict[str, Any] = {**chosen, **given, **({"hf_rounds": 0} if args.without_hf else {})}
    try:
        return bench(
            args.model,
            args.circuit,
            Path(args.out or ("emovllm-bench-quick" if args.quick else "emovllm-bench")),
            fresh=args.fresh,
            max_model_len=args.max_model_len,
            prompt_tokens=args.prompt_tokens,
            output_tokens=args.output_tokens,
            prefix_tokens=args.prefix_tokens,
            dtype=args.dtype,
            engine_args=args.engine_args,
            env=dict(args.env),
            seed=args.seed,
            **sizes,
        )
    except BenchError as error:
        print(f"emovllm bench: {error}", file=sys.stderr)
        return 1


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return int(text)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted({_count(part.strip()) for part in text.split(",")}))


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text}")
    return value


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value
