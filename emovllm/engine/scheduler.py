"""The scheduler: vLLM's own, in a process whose prefix cache tells emotions apart.

Prompt blocks before the prompt's last token hold nothing of the emotion (scope `all` apart), so all emotions and plain
requests share them; from the block with the prompt's last token on, the key holds the emotion and where it begins.
States (of Mamba, say) are kept by the key of the block that they are made at the end of, and so are told apart alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from emovllm.emotion import KEY, Wire
from emovllm.engine.patching import patches
from emovllm.engine.transfer import injected
from emovllm.engine.transport import add_rows


class _EmotionCache:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        separate_emotions.install()
        super().__init__(*args, **kwargs)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        return add_rows(outputs, model_runner_output)

    def _connector_finished(self, request: Any) -> tuple[bool, dict[str, Any] | None]:
        # What a prefill instance tells its router, and the router a decode instance.
        delay, params = super()._connector_finished(request)  # type: ignore[misc]
        if params is not None:
            params = {**params, KEY: injected(Wire.of(request.sampling_params))}
        return delay, params


class EmotionScheduler(_EmotionCache, Scheduler):
    """vLLM's scheduler."""


class EmotionAsyncScheduler(_EmotionCache, AsyncScheduler):
    """vLLM's scheduler for asynchronous scheduling."""


@patches(
    "vllm.v1.core.kv_cache_utils.generate_block_hash_extra_keys",
    imported_by=("vllm.v1.core.block_pool", "vllm.v1.simple_kv_offload.manager"),
)
def separate_emotions(
    generate_block_hash_extra_keys: Callable[..., Any],
    request: Any,
    start_token_idx: int,
    end_token_idx: int,
    start_mm_idx: int,
) -> tuple[tuple[Any, ...] | None, int]:
    keys, next_mm_idx = generate_block_hash_extra_keys(request, start_token_idx, end_token_idx, start_mm_idx)
    key = _request_key(request)
    if key is not None and end_token_idx > key.first:
        keys = (*(keys or ()), (KEY, key.text))
    return keys, next_mm_idx


class _Key(NamedTuple):
    """text: what was injected and where it begins, for with the same emotion and the same tokens, one request's prompt
    may hold the beginning of another's reply. One text, as events of the cache publish a single value of each key.
    first: the first position injected."""

    text: str
    first: int


def _request_key(request: Any) -> _Key | None:
    """Computed once per request: long prompts have many blocks."""
    try:
        return request._emotion_key
    except AttributeError:
        wire = Wire.of(request.sampling_params)
        if wire is None:
            request._emotion_key = None
        else:
            first = wire.first(request.num_prompt_tokens)
            text = f"{wire.cache_key()} from {first}"
            # Where all of the prompt is injected, the first position does not tell where the reply begins.
            if first == 0 and wire.changes:
                text += f" of {wire.prompt_length(request.num_prompt_tokens)}"
            request._emotion_key = _Key(text, first)
        return request._emotion_key
