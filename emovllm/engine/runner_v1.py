"""The V1 model runner: the coefficients are set where its inputs are prepared, right before every forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from emovllm.engine.batch import Coefficients
from emovllm.engine.config import KEY


def attach(runner: Any, coefficients: Coefficients) -> None:
    """Wraps this runner's `_prepare_inputs` (vllm.v1.worker.gpu_model_runner.GPUModelRunner)."""
    prepare_inputs = runner._prepare_inputs

    def wire_of(req_id: str) -> Mapping[str, Any] | None:
        params = runner.requests[req_id].sampling_params
        return (params.extra_args or {}).get(KEY) if params is not None else None

    def _prepare_inputs(scheduler_output: Any, num_scheduled_tokens: np.ndarray) -> Any:
        prepared = prepare_inputs(scheduler_output, num_scheduled_tokens)
        batch = runner.input_batch
        count = batch.num_reqs
        coefficients.update(
            batch.req_ids,
            wire_of,
            num_scheduled_tokens,
            batch.num_computed_tokens_cpu[:count],
            batch.num_prompt_tokens[:count],
            has_new=bool(scheduler_output.scheduled_new_reqs),
        )
        return prepared

    runner._prepare_inputs = _prepare_inputs
