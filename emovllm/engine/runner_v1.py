"""The V1 model runner (vllm.v1.worker.gpu_model_runner): the coefficients are set where its inputs are prepared."""

from __future__ import annotations

from typing import Any

import numpy as np

from emovllm.engine.coefficients import Coefficients
from emovllm.engine.config import emotion_of
from emovllm.engine.lora import adapter_slots


def attach(runner: Any, coefficients: Coefficients) -> None:
    """Wraps this runner's `_update_states`, where requests join and leave, and its `_prepare_inputs`, called right
    before every forward."""
    update_states, prepare_inputs = runner._update_states, runner._prepare_inputs

    def _update_states(scheduler_output: Any) -> Any:
        corrections = update_states(scheduler_output)
        # In this order: a request may end, and another come under its name.
        for req_id in scheduler_output.finished_req_ids:
            coefficients.leave(req_id)
        for new in scheduler_output.scheduled_new_reqs:
            request = runner.requests[new.req_id]
            coefficients.join(new.req_id, emotion_of(request.sampling_params), request.num_prompt_tokens)
        return corrections

    def _prepare_inputs(scheduler_output: Any, num_scheduled_tokens: np.ndarray) -> Any:
        prepared = prepare_inputs(scheduler_output, num_scheduled_tokens)
        batch = runner.input_batch
        count = batch.num_reqs
        coefficients.update(
            batch.req_ids,
            num_scheduled_tokens,
            batch.num_computed_tokens_cpu[:count],
            lambda: adapter_slots(runner, batch.request_lora_mapping[:count]),
        )
        return prepared

    runner._update_states = _update_states
    runner._prepare_inputs = _prepare_inputs
