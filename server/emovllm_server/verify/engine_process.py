"""A vLLM engine as `emovllm serve` would start it, driven by JSON lines:

    python -m emovllm_server.verify.engine_process '{"argv": [...], "steered": bool, "changes": {argument: value}}'

{"prompts": [[token ids]], "fields": [{emotion fields}], "output_tokens": n, "scored": bool, "reset": bool} gives
{"replies": [{"tokens", "logprobs"}], "arrivals": [[seconds from submission, of each token]], "hits"}: greedy, each of
exactly n tokens; `scored` asks for log-probabilities, and `reset` empties the prefix cache first. {"error": text} where
that fails.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Sequence
from typing import Any

from emovllm.answering import Answer, answer_lines
from emovllm.emotion import KEY
from emovllm.policy import Policy
from emovllm_server.arguments import parse
from emovllm_server.bench.engine_process import describe, generate, prefix_counters, settle
from emovllm_server.serve import fill_in
from emovllm_server.verify.options import add_options


def main() -> None:
    answer_lines(start)


def start(argv: Sequence[str], steered: bool, changes: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
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
    about = about_engine(engine, steered)
    settle()
    return about, functools.partial(answer, engine)


def about_engine(engine: Any, steered: bool) -> dict[str, Any]:
    config = engine.vllm_config
    reports = engine.collective_rpc("emotion_report") if steered else []
    return {
        **describe(config),
        "quantization": config.model_config.quantization,
        "tensor_parallel": config.parallel_config.tensor_parallel_size,
        "pipeline_parallel": config.parallel_config.pipeline_parallel_size,
        "prefix_caching": bool(config.cache_config.enable_prefix_caching),
        "max_model_len": config.model_config.max_model_len,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "ranks": [report["sites"] for report in reports],
        # Of the one circuit; ranks of a stage say the same.
        "distances": {
            key: site for report in reports for sites in report["distances"].values() for key, site in sites.items()
        },
    }


def answer(
    engine: Any,
    prompts: list[list[int]],
    fields: list[dict[str, Any]],
    output_tokens: int,
    scored: bool = True,
    reset: bool = True,
) -> dict[str, Any]:
    if reset and not engine.reset_prefix_cache():
        raise RuntimeError("the prefix cache could not be reset")
    _, before = prefix_counters(engine)
    replies: list[dict[str, list[Any]]] = [{"tokens": [], "logprobs": []} for _ in prompts]

    def take(index: int, part: Any) -> None:
        replies[index]["tokens"] += list(part.token_ids)
        steps = zip(part.logprobs, part.token_ids, strict=True)
        replies[index]["logprobs"] += [step[token].logprob for step, token in steps]

    gc.collect()
    how: dict[str, Any] = {"take": take, "logprobs": 0} if scored else {}
    arrivals = generate(engine, prompts, fields, output_tokens, **how)
    _, after = prefix_counters(engine)
    return {"replies": replies, "arrivals": arrivals, "hits": after - before}


if __name__ == "__main__":
    main()
