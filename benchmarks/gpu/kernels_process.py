"""A vLLM engine whose decode steps are profiled, driven by JSON lines:
`python -m benchmarks.gpu.kernels_process '{arguments of vllm.LLM}'`.

{"size": requests, "vocabulary": n, "emotions": [names]} gives {"step_ms", "kernels": {name: how many a step runs},
"microseconds": {name: of a step}}; without emotions requests are plain.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from emovllm.answering import Answer, answer_lines
from emovllm_server.bench.engine_process import describe, settle

STEPS = 16
PROMPT_TOKENS = 32
# By then all prompts are computed.
_PREFILL_STEPS = 4


def start(**arguments: Any) -> tuple[dict[str, Any], Answer]:
    from vllm import LLM

    llm = LLM(**arguments)
    config = llm.llm_engine.vllm_config
    about = {**describe(config), "layers": config.model_config.hf_text_config.num_hidden_layers}
    settle()
    return about, functools.partial(profile_step, llm.llm_engine)


def profile_step(engine: Any, size: int, vocabulary: int, emotions: list[str]) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    gpu = torch.cuda.is_available()
    fields = [{"emotion": name} for name in emotions] or [{}]
    prompts = [[7 + number % (vocabulary - 7)] * PROMPT_TOKENS for number in range(size)]
    decode(engine, prompts, fields, STEPS // 2)  # kernels are chosen
    times = decode(engine, prompts, fields, 10 * STEPS)
    profiler = profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU])
    decode(engine, prompts, fields, STEPS, profiler)
    kernels: Counter[str] = Counter()
    microseconds: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type.name == ("CUDA" if gpu else "CPU") and not event.is_user_annotation:
            kernels[event.name] += 1
            microseconds[event.name] += event.time_range.elapsed_us()
    if not kernels:
        raise RuntimeError("the profiler saw no kernel")
    return {
        "step_ms": 1e3 * statistics.median(times),
        "kernels": {name: count / STEPS for name, count in kernels.most_common()},
        "microseconds": {name: round(total / STEPS, 2) for name, total in microseconds.most_common()},
    }


def decode(
    engine: Any,
    prompts: list[list[int]],
    fields: list[dict[str, Any]],
    steps: int,
    window: AbstractContextManager[Any] | None = None,
) -> list[float]:
    """Seconds of each of `steps` steps that decode all requests and nothing else, taken within `window`."""
    import torch
    from vllm import SamplingParams, TokensPrompt

    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    # More tokens than are taken: no request ends while it is measured.
    settings = {"temperature": 0, "max_tokens": steps + 2 * _PREFILL_STEPS, "ignore_eos": True, "detokenize": False}
    for number, prompt in enumerate(prompts):
        params = SamplingParams(**settings, extra_args=fields[number % len(fields)] or None)
        engine.add_request(str(number), TokensPrompt(prompt_token_ids=prompt), params)
    for _ in range(_PREFILL_STEPS):
        engine.step()
    times = []
    synchronize()
    with window or nullcontext():
        for _ in range(steps):
            begun = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - begun)
        synchronize()
    while engine.has_unfinished_requests():
        engine.step()
    return times


if __name__ == "__main__":
    answer_lines(start)
