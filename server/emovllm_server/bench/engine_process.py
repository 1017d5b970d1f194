"""A vLLM engine driven by JSON lines: `python -m emovllm_server.bench.engine_process '{arguments of vllm.LLM}'`.

Each line in is {"prompts": [[token ids]], "fields": [{emotion fields}], "output_tokens": n, "one_by_one": bool}; each
line out is {"seconds", "arrivals": [[seconds from submission, of each token]], "queries", "hits"} or {"error": text}.
"""

from __future__ import annotations

import functools
import gc
import sys
import time
from collections.abc import Callable
from typing import Any

from emovllm.answering import Answer, answer_lines


def start(**arguments: Any) -> tuple[dict[str, Any], Answer]:
    from vllm import LLM

    llm = LLM(**arguments)
    about = describe(llm.llm_engine.vllm_config)
    settle()
    return about, functools.partial(measure, llm)


def settle() -> None:
    """What vLLM's own engine process does once it is ready: the collector need not walk what stays."""
    gc.collect()
    gc.freeze()


def describe(config: Any) -> dict[str, Any]:
    """An engine, by vLLM's configuration of it."""
    import torch
    import vllm
    from vllm.platforms import current_platform

    gpu = current_platform.device_type != "cpu"
    return {
        "device": current_platform.device_type,
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "threads": torch.get_num_threads(),
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "block_size": config.cache_config.block_size,
        "compilation": getattr(config.compilation_config.mode, "name", str(config.compilation_config.mode)),
        "cudagraph": getattr(config.compilation_config.cudagraph_mode, "name", None) if gpu else None,
        "v2_model_runner": bool(getattr(config, "use_v2_model_runner", False)),
        "plugin": "emovllm.plugin" in sys.modules,
    }


def measure(
    llm: Any, prompts: list[list[int]], fields: list[dict[str, Any]], output_tokens: int, one_by_one: bool = False
) -> dict[str, Any]:
    """Untimed before: the cache of earlier prompts is forgotten, and a few tokens wake up what slept."""
    engine = llm.llm_engine
    generate(engine, [prompts[0][:8]], [{}], 4)
    if not engine.reset_prefix_cache():
        raise RuntimeError("the prefix cache could not be reset")
    gc.collect()
    before = prefix_counters(engine)
    start = time.perf_counter()
    if one_by_one:
        requests = zip(prompts, fields, strict=True)
        arrivals = [generate(engine, [ids], [asked], output_tokens)[0] for ids, asked in requests]
    else:
        arrivals = generate(engine, prompts, fields, output_tokens)
    seconds = time.perf_counter() - start
    after = prefix_counters(engine)
    return {"seconds": seconds, "arrivals": arrivals, "queries": after[0] - before[0], "hits": after[1] - before[1]}


def generate(
    engine: Any,
    prompts: list[list[int]],
    fields: list[dict[str, Any]],
    output_tokens: int,
    take: Callable[[int, Any], None] | None = None,
    logprobs: int | None = None,
) -> list[list[float]]:
    """Greedy, of exactly `output_tokens`.

    Steps the engine here, rather than through `LLM.generate`: the time after each step is the tokens' own. Without
    detokenisation, which costs the same with and without emotions.

    Args:
        take: is given the number of a request, and each part of its reply as vLLM gives it. logprobs: as vLLM takes it.
    Returns: when each token came, in seconds from its request's submission.
    Raises: RuntimeError where a reply has another length.
    """
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    submitted: list[float] = []
    arrivals: list[list[float]] = [[] for _ in prompts]
    for index, (ids, asked) in enumerate(zip(prompts, fields, strict=True)):
        params = SamplingParams(
            temperature=0,
            max_tokens=output_tokens,
            ignore_eos=True,
            detokenize=False,
            logprobs=logprobs,
            output_kind=RequestOutputKind.DELTA,
            extra_args=asked or None,
        )
        submitted.append(time.perf_counter())
        engine.add_request(str(index), TokensPrompt(prompt_token_ids=ids), params)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            index, part = int(output.request_id), output.outputs[0]
            arrivals[index] += [now - submitted[index]] * len(part.token_ids)
            if take is not None:
                take(index, part)
    short = sum(len(times) != output_tokens for times in arrivals)
    if short:
        raise RuntimeError(f"{short} of {len(arrivals)} requests did not give {output_tokens} tokens")
    return arrivals


def prefix_counters(engine: Any) -> tuple[int, int]:
    """Tokens asked of the prefix cache, and found there, since the start."""
    values = {metric.name: metric.value for metric in engine.get_metrics() if hasattr(metric, "value")}
    return int(values["vllm:prefix_cache_queries"]), int(values["vllm:prefix_cache_hits"])


if __name__ == "__main__":
    answer_lines(start)
