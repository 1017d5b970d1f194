"""The V2 model runner (vllm.v1.worker.gpu): its `ModelState` sees requests join and leave, and prepares the inputs of
every forward, the replay of a full CUDA graph included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from emovllm.emotion import Wire
from emovllm.engine.coefficients import BatchAdapters, Coefficients
from emovllm.engine.gains import Inputs
from emovllm.engine.lora import adapter_layout
from emovllm.engine.patching import patches
from emovllm.engine.readout import ReadOut


def attach(runner: Any, coefficients: Coefficients, read_out: ReadOut | None = None) -> None:
    """Has this runner's model state keep `coefficients`, and tell `read_out` of each batch."""
    state = runner.model_state
    state.emotion_runner, state.emotion_coefficients = runner, coefficients
    state.emotion_read_out = read_out
    state.emotion_preempted = set()
    for patch in (join, leave, set_coefficients):
        patch.install(on=state)
    keep_preempted.install(on=runner)


@patches("vllm.v1.worker.gpu.model_states.interface.ModelState.add_request")
def join(add_request: Callable[..., Any], state: Any, req_index: int, new: Any) -> None:
    add_request(state, req_index, new)
    # A preempted request comes back as a new one, whose prefill holds what it had generated; its prompt does not.
    prompt = new.prompt_token_ids if new.prompt_token_ids is not None else new.prompt_embeds
    wire = Wire.of(new.sampling_params)
    state.emotion_coefficients.join(new.req_id, wire, len(prompt), lambda: new.prefill_token_ids)
    state.emotion_preempted.discard(new.req_id)
    if state.emotion_read_out is not None:
        state.emotion_read_out.join(new.req_id, Wire.reading_of(new.sampling_params) is not None)


@patches("vllm.v1.worker.gpu.model_states.interface.ModelState.remove_request")
def leave(remove_request: Callable[..., Any], state: Any, req_id: str) -> None:
    remove_request(state, req_id)
    if req_id in state.emotion_preempted:
        # It comes back, and what was read for it is wanted then.
        return
    state.emotion_coefficients.leave(req_id)
    if state.emotion_read_out is not None:
        state.emotion_read_out.leave(req_id)


@patches("vllm.v1.worker.gpu.model_runner.GPUModelRunner.finish_requests")
def keep_preempted(finish_requests: Callable[..., Any], runner: Any, scheduler_output: Any) -> None:
    """Tells requests that end from those that will come back: the model state is told alike of both."""
    preempted = runner.model_state.emotion_preempted
    preempted |= scheduler_output.preempted_req_ids or set()
    preempted -= scheduler_output.finished_req_ids
    finish_requests(runner, scheduler_output)


@patches("vllm.v1.worker.gpu.model_states.interface.ModelState.prepare_inputs")
def set_coefficients(prepare_inputs: Callable[..., Any], state: Any, input_batch: Any, req_states: Any) -> Any:
    runner = state.emotion_runner
    adapters = None
    if runner.lora_config:
        adapters = BatchAdapters(adapter_layout(runner), runner.lora_state.lora_ids[input_batch.idx_mapping_np])
    state.emotion_coefficients.update(
        input_batch.req_ids,
        input_batch.num_scheduled_tokens,
        input_batch.num_computed_tokens_np,
        adapters,
        Inputs(input_batch.input_ids, input_batch.positions),
    )
    if state.emotion_read_out is not None:
        counts = np.diff(input_batch.cu_num_logits_np[: len(input_batch.req_ids) + 1])
        state.emotion_read_out.prepare(input_batch.req_ids, input_batch.logits_indices, counts)
    return prepare_inputs(state, input_batch, req_states)


@contextmanager
def blocks_apart(runner: Any, requests: int) -> Iterator[int]:
    """Gives each of so many dummy requests a block of its own for each kind of layer. Yields: the last such block."""
    tables = runner.block_tables
    shared = tables.get_dummy_block_tables

    def apart(count: int) -> tuple[torch.Tensor, ...]:
        rows: tuple[torch.Tensor, ...] = shared(count)
        for group, table in enumerate(rows):
            first = 1 + group * requests
            table[:, 0] = torch.arange(first, first + count, dtype=table.dtype, device=table.device)
        return rows

    tables.get_dummy_block_tables = apart
    try:
        yield len(tables.block_tables) * requests
    finally:
        del tables.get_dummy_block_tables
