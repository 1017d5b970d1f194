"""A vLLM engine as `emovllm serve` would start it, driven by JSON lines:

    python -m emovllm_server.verify.engine_process '{"argv": [...], "steered": bool, "changes": {argument: value}}'

{"prompts": [[token ids]], "fields": [{emotion fields}], "output_tokens": n, "scored": bool, "reset": bool} gives
{"replies": [{"tokens", "logprobs"}], "arrivals": [[seconds from submission, of each token]], "hits"}: greedy, each of
exactly n tokens; `scored` asks for log-probabilities, and `reset` empties the prefix cache first. {"error": text} where
that fails.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from emovllm.catalogue import Policy
from emovllm.emotion import KEY
from emovllm_server.arguments import parse
from emovllm_server.serve import fill_in
from emovllm_server.verify.options import add_options


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM logs to standard output
    try:
        engine = start(**json.loads(sys.argv[1]))
        said = describe(engine)
    except BaseException as error:
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        raise SystemExit(1) from error
    gc.collect()
    gc.freeze()
    replies.write(json.dumps(said) + "\n")
    for line in sys.stdin:
        try:
            reply = answer(engine, **json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")


def start(argv: Sequence[str], steered: bool, changes: dict[str, Any]) -> Any:
    """vLLM's LLMEngine, with the defaults of its server."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    options, args = parse(argv, "verify", add_options)
    fill_in(args, options)
    ours = args.additional_config.pop(KEY)
    if steered:
        # An operator's limits are no matter of exactness, and plain requests are to be plain.
        args.additional_config[KEY] = {k: value for k, value in ours.items() if k not in Policy.model_fields}
    for name, value in changes.items():
        setattr(args, name, value)
    arguments = EngineArgs.from_cli_args(args)
    arguments.disable_log_stats = False  # counters of the prefix cache; a server has them as well
    engine = LLMEngine.from_engine_args(arguments, usage_context=UsageContext.OPENAI_API_SERVER)
    # As both of vLLM's front ends do before the first request: what the workers hold is compared here.
    engine.get_supported_tasks()
    return engine


def describe(engine: Any) -> dict[str, Any]:
    import torch
    import vllm
    from vllm.platforms import current_platform

    config = engine.vllm_config
    gpu = current_platform.device_type != "cpu"
    steered = isinstance(config.additional_config, dict) and config.additional_config.get(KEY) is not None
    return {
        "device": current_platform.device_type,
        "gpu": current_platform.get_device_name() if gpu else None,
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "quantization": config.model_config.quantization,
        "compilation": getattr(config.compilation_config.mode, "name", str(config.compilation_config.mode)),
        "cudagraph": getattr(config.compilation_config.cudagraph_mode, "name", None) if gpu else None,
        "v2_model_runner": bool(getattr(config, "use_v2_model_runner", False)),
        "tensor_parallel": config.parallel_config.tensor_parallel_size,
        "pipeline_parallel": config.parallel_config.pipeline_parallel_size,
        "block_size": config.cache_config.block_size,
        "prefix_caching": bool(config.cache_config.enable_prefix_caching),
        "max_model_len": config.model_config.max_model_len,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "model": config.model_config.model,
        "ranks": [report["sites"] for report in engine.collective_rpc("emotion_report")] if steered else [],
    }


def answer(
    engine: Any,
    prompts: list[list[int]],
    fields: list[dict[str, Any]],
    output_tokens: int,
    scored: bool = True,
    reset: bool = True,
) -> dict[str, Any]:
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    if reset and not engine.reset_prefix_cache():
        raise RuntimeError("the prefix cache could not be reset")
    before = prefix_hits(engine)
    replies: dict[str, dict[str, list[Any]]] = {}
    arrivals: dict[str, list[float]] = {}
    submitted: dict[str, float] = {}
    gc.collect()
    for index, (ids, asked) in enumerate(zip(prompts, fields, strict=True)):
        name = str(index)
        params = SamplingParams(
            temperature=0,
            max_tokens=output_tokens,
            ignore_eos=True,
            detokenize=False,
            logprobs=0 if scored else None,
            output_kind=RequestOutputKind.DELTA,
            extra_args=asked or None,
        )
        replies[name], arrivals[name] = {"tokens": [], "logprobs": []}, []
        submitted[name] = time.perf_counter()
        engine.add_request(name, TokensPrompt(prompt_token_ids=ids), params)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            name, part = output.request_id, output.outputs[0]
            replies[name]["tokens"] += list(part.token_ids)
            if scored:
                steps = zip(part.logprobs, part.token_ids, strict=True)
                replies[name]["logprobs"] += [step[token].logprob for step, token in steps]
            arrivals[name] += [now - submitted[name]] * len(part.token_ids)
    short = sum(len(reply["tokens"]) != output_tokens for reply in replies.values())
    if short:
        raise RuntimeError(f"{short} of {len(replies)} requests did not give {output_tokens} tokens")
    return {
        "replies": list(replies.values()),
        "arrivals": list(arrivals.values()),
        "hits": prefix_hits(engine) - before,
    }


def prefix_hits(engine: Any) -> int:
    """Tokens found in the prefix cache since the start."""
    values = {metric.name: metric.value for metric in engine.get_metrics() if hasattr(metric, "value")}
    return int(values["vllm:prefix_cache_hits"])


if __name__ == "__main__":
    main()
