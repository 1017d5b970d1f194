"""The V1 model runner (vllm.v1.worker.gpu_model_runner): the coefficients are set where its inputs are prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from emovllm.emotion import Wire
from emovllm.engine.coefficients import BatchAdapters, Coefficients
from emovllm.engine.gains import Inputs
from emovllm.engine.lora import adapter_layout
from emovllm.engine.patching import patches
from emovllm.engine.readout import ReadOut


def attach(runner: Any, coefficients: Coefficients, read_out: ReadOut | None = None) -> None:
    """Has this runner, and no other of its class, keep `coefficients`, and tell `read_out` of each batch."""
    runner.emotion_coefficients, runner.emotion_read_out = coefficients, read_out
    for patch in (follow_requests, set_coefficients):
        patch.install(on=runner)


@patches("vllm.v1.worker.gpu_model_runner.GPUModelRunner._update_states")
def follow_requests(update_states: Callable[..., Any], runner: Any, scheduler_output: Any) -> Any:
    """Where requests join and leave."""
    corrections = update_states(runner, scheduler_output)
    # In this order: a request may end, and another come under its name.
    read_out = runner.emotion_read_out
    for req_id in scheduler_output.finished_req_ids:
        runner.emotion_coefficients.leave(req_id)
        if read_out is not None:
            read_out.leave(req_id)
    for new in scheduler_output.scheduled_new_reqs:
        request = _join(runner, new.req_id)
        if read_out is not None:
            read_out.join(new.req_id, Wire.reading_of(request.sampling_params) is not None)
    for req_id in scheduler_output.scheduled_cached_reqs.resumed_req_ids:
        _join(runner, req_id)
    return corrections


def _join(runner: Any, req_id: str) -> Any:
    """Takes up a request that is new, or comes back after a preemption, with all that it had generated."""
    request = runner.requests[req_id]

    def tokens() -> list[int]:
        # Of a prompt of embeddings there are none; nothing asks for those of a prompt.
        prompt = request.prompt_token_ids or [0] * request.num_prompt_tokens
        return [*prompt, *request.output_token_ids]

    runner.emotion_coefficients.join(req_id, Wire.of(request.sampling_params), request.num_prompt_tokens, tokens)
    return request


@patches("vllm.v1.worker.gpu_model_runner.GPUModelRunner._prepare_inputs")
def set_coefficients(
    prepare_inputs: Callable[..., Any], runner: Any, scheduler_output: Any, num_scheduled_tokens: np.ndarray
) -> Any:
    """Called right before every forward."""
    prepared = prepare_inputs(runner, scheduler_output, num_scheduled_tokens)
    batch = runner.input_batch
    count = batch.num_reqs
    runner.emotion_coefficients.update(
        batch.req_ids,
        num_scheduled_tokens,
        batch.num_computed_tokens_cpu[:count],
        BatchAdapters(adapter_layout(runner), batch.request_lora_mapping[:count]) if runner.lora_config else None,
        Inputs(runner.input_ids.gpu, runner.positions),
    )
    if runner.emotion_read_out is not None:
        sampled, drafts = prepared[:2]
        counts = None if drafts is None else np.array(drafts.num_draft_tokens) + 1
        runner.emotion_read_out.prepare(batch.req_ids, sampled, counts)
    return prepared


@contextmanager
def blocks_apart(runner: Any, requests: int) -> Iterator[int]:
    """Gives each of so many dummy requests a block of its own for each kind of layer. Yields: the last such block."""
    batch = runner.input_batch
    tables = batch.block_table.block_tables
    rows = range(min(requests, batch.max_num_reqs))
    for group, table in enumerate(tables):
        for row in rows:
            table.add_row([1 + group * len(rows) + row], row)
    try:
        yield len(tables) * len(rows)
    finally:
        for table in tables:
            for row in rows:
                table.clear_row(row)
