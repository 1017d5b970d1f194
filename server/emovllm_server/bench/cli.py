"""`emovllm bench`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt
from cyclopts import Parameter

from emovllm.errors import OptionError
from emovllm.options import COMMAS, FLAT, QUIET, Options, published_command

# With the default model on two cores: about half an hour, and seven minutes.
FULL = {"rounds": 16, "starts": 2, "hf_rounds": 3, "batch_sizes": (1, 8, 64)}
QUICK = {"rounds": 3, "starts": 1, "hf_rounds": 2, "batch_sizes": (1, 8, 16)}


@dataclass(frozen=True)
class BenchOptions(Options):
    model: Annotated[
        str | None, Parameter(help="a folder or Hugging Face id (default: the default model with its circuit)")
    ] = None
    _: KW_ONLY
    circuit: Annotated[str | None, Parameter(help="the circuit: a folder, or a Hugging Face repository id")] = None
    quick: Annotated[bool, QUIET, Parameter(help="under 10 minutes with the default model on two cores")] = False
    batch_sizes: Annotated[
        tuple[Annotated[int, Gt(0)], ...],
        COMMAS,
        QUIET,
        Parameter(help="default: 1,8,64 (quick: 1,8,16)", metavar="N,N,..."),
    ] = ()
    rounds: Annotated[int | None, Gt(0), Parameter(help="of each start (default: 16; quick: 3)", metavar="N")] = None
    starts: Annotated[
        int | None,
        Gt(0),
        Parameter(help="how often engines are started afresh: starts differ (default: 2; quick: 1)", metavar="N"),
    ] = None
    prompt_tokens: Annotated[int, Gt(0), Parameter(help="of every request", metavar="N")] = 64
    output_tokens: Annotated[int, Gt(0), Parameter(help="of every request", metavar="N")] = 64
    prefix_tokens: Annotated[int, Gt(0), Parameter(help="of the shared prefix", metavar="N")] = 512
    without_hf: Annotated[bool, QUIET, Parameter(help="leave out Hugging Face")] = False
    dtype: Annotated[str, Parameter(help="of all engines; auto is the model's")] = "auto"
    max_model_len: Annotated[
        int | None, Gt(0), Parameter(help="of all engines (default: what the requests need)", metavar="N")
    ] = None
    engine_args: Annotated[
        str, Parameter(help="arguments of vllm.LLM, for all engines alike", metavar="JSON", show_default=False)
    ] = "{}"
    env: Annotated[
        tuple[str, ...],
        QUIET,
        Parameter(help="environment variable of all engines; repeatable", metavar="NAME=VALUE"),
    ] = ()
    seed: Annotated[int, Parameter(help="of prompts, blends and order", metavar="N")] = 0
    out: Annotated[
        Path | None, Parameter(help="default: emovllm-bench (quick: emovllm-bench-quick)", metavar="DIR")
    ] = None
    fresh: Annotated[bool, QUIET, Parameter(help="forget what --out holds")] = False

    @property
    def resumes_from(self) -> Path:
        return self.out or Path("emovllm-bench-quick" if self.quick else "emovllm-bench")


def main(options: Annotated[BenchOptions, FLAT] = BenchOptions()) -> int:
    """Plain vLLM without the plugin against emovllm, interleaved on this machine: no emotion, one emotion, all emotions
    mixed, a blend and strength of its own for each (of 256); tokens/s, time to first token, time per output token,
    inter-token p99; the hit rate of a shared prefix; and Hugging Face generate with hooks. Prints ratios with their
    spread, beside that of two plain engines; writes result.json, result.md and result.png. Interrupted, it reports what
    is there; run again, it goes on.
    """
    engine_args, env = _object(options.engine_args), dict(_variables(options.env))
    from emovllm_server.bench.command import bench

    sizes: dict[str, Any] = dict(QUICK if options.quick else FULL)
    given = {
        "rounds": options.rounds,
        "starts": options.starts,
        "batch_sizes": tuple(sorted(set(options.batch_sizes))),
    }
    sizes |= {name: value for name, value in given.items() if value}
    if options.without_hf:
        sizes["hf_rounds"] = 0
    return bench(
        options.model,
        options.circuit,
        options.resumes_from,
        fresh=options.fresh,
        command=published_command("bench", options),
        max_model_len=options.max_model_len,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        prefix_tokens=options.prefix_tokens,
        dtype=options.dtype,
        engine_args=engine_args,
        env=env,
        seed=options.seed,
        **sizes,
    )


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise OptionError(f"--engine-args: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise OptionError(f"--engine-args: expected a JSON object, got {text}")
    return value


def _variables(texts: Iterable[str]) -> Iterable[tuple[str, str]]:
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise OptionError(f"--env: expected NAME=VALUE, got {text!r}")
        yield name, value
