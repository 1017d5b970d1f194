"""A vLLM engine driven by JSON lines: `python -m emovllm_server.bench.engine_process '{arguments of vllm.LLM}'`.

Each line in is {"prompts": [[token ids]], "fields": [{emotion fields}], "output_tokens": n, "one_by_one": bool}; each
line out is {"seconds", "arrivals": [[seconds from submission, of each token]], "queries", "hits"} or {"error": text}.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import Any


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM logs to standard output
    try:
        from vllm import LLM

        llm = LLM(**json.loads(sys.argv[1]))
        said = describe(llm)
    except Exception as error:
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        raise SystemExit(1) from error
    # What vLLM's own engine process does at this point: the collector need not walk what stays.
    gc.collect()
    gc.freeze()
    replies.write(json.dumps(said) + "\n")
    for line in sys.stdin:
        try:
            reply = measure(llm, **json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")


def describe(llm: Any) -> dict[str, Any]:
    import torch
    import vllm
    from vllm.platforms import current_platform

    config = llm.llm_engine.vllm_config
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
    generate(llm, [prompts[0][:8]], [{}], 4)
    if not llm.llm_engine.reset_prefix_cache():
        raise RuntimeError("the prefix cache could not be reset")
    gc.collect()
    before = prefix_counters(llm)
    start = time.perf_counter()
    if one_by_one:
        arrivals = [generate(llm, [ids], [asked], output_tokens)[0] for ids, asked in zip(prompts, fields, strict=True)]
    else:
        arrivals = generate(llm, prompts, fields, output_tokens)
    seconds = time.perf_counter() - start
    after = prefix_counters(llm)
    short = sum(len(times) != output_tokens for times in arrivals)
    if short:
        raise RuntimeError(f"{short} of {len(arrivals)} requests did not give {output_tokens} tokens")
    return {"seconds": seconds, "arrivals": arrivals, "queries": after[0] - before[0], "hits": after[1] - before[1]}


def generate(llm: Any, prompts: list[list[int]], fields: list[dict[str, Any]], output_tokens: int) -> list[list[float]]:
    """Greedy, of exactly `output_tokens`. Returns: when each token came, in seconds from its request's submission.

    Steps the engine here, rather than through `LLM.generate`: the time after each step is the tokens' own. Without
    detokenisation, which costs the same with and without emotions.
    """
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    submitted: dict[str, float] = {}
    arrivals: dict[str, list[float]] = {}
    for index, (ids, asked) in enumerate(zip(prompts, fields, strict=True)):
        params = SamplingParams(
            temperature=0,
            max_tokens=output_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=asked or None,
        )
        name = str(index)
        arrivals[name] = []
        submitted[name] = time.perf_counter()
        engine.add_request(name, TokensPrompt(prompt_token_ids=ids), params)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            name = output.request_id
            arrivals[name] += [now - submitted[name]] * len(output.outputs[0].token_ids)
    return list(arrivals.values())


def prefix_counters(llm: Any) -> tuple[int, int]:
    """Tokens asked of the prefix cache, and found there, since the start."""
    values = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return int(values["vllm:prefix_cache_queries"]), int(values["vllm:prefix_cache_hits"])


if __name__ == "__main__":
    main()
