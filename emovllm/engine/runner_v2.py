"""The V2 model runner (vllm.v1.worker.gpu): its `ModelState` sees requests join and leave, and prepares the inputs of
every forward, the replay of a full CUDA graph included."""

from __future__ import annotations

from typing import Any

from emovllm.engine.coefficients import Coefficients
from emovllm.engine.config import emotion_of
from emovllm.engine.lora import adapter_slots


def attach(runner: Any, coefficients: Coefficients) -> None:
    """Wraps three methods of this runner's model state."""
    state = runner.model_state
    add_request, remove_request, prepare_inputs = state.add_request, state.remove_request, state.prepare_inputs

    def add_request_steered(req_index: int, new: Any) -> None:
        add_request(req_index, new)
        # A preempted request comes back as a new one, whose prefill holds what it had generated; its prompt does not.
        prompt = new.prompt_token_ids if new.prompt_token_ids is not None else new.prompt_embeds
        coefficients.join(new.req_id, emotion_of(new.sampling_params), len(prompt))

    def remove_request_steered(req_id: str) -> None:
        remove_request(req_id)
        coefficients.leave(req_id)

    def prepare_inputs_steered(input_batch: Any, req_states: Any) -> Any:
        coefficients.update(
            input_batch.req_ids,
            input_batch.num_scheduled_tokens,
            input_batch.num_computed_tokens_np,
            lambda: adapter_slots(runner, runner.lora_state.lora_ids[input_batch.idx_mapping_np]),
        )
        return prepare_inputs(input_batch, req_states)

    state.add_request = add_request_steered
    state.remove_request = remove_request_steered
    state.prepare_inputs = prepare_inputs_steered
