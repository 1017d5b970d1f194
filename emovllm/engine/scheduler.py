"""The scheduler: vLLM's own, in a process whose prefix cache tells emotions apart.

Prompt blocks before the prompt's last token hold nothing of the emotion (scope `all` apart), so all emotions and plain
requests share them; from the block with the prompt's last token on, the key holds the emotion and where it begins.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

from vllm.v1.core import block_pool, kv_cache_utils
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from emovllm.emotion import cache_key
from emovllm.engine.config import KEY, emotion_of, prompt_length

_FUNCTION = "generate_block_hash_extra_keys"
_USERS = ("vllm.v1.simple_kv_offload.manager",)


class _EmotionCache:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        separate_emotions()
        super().__init__(*args, **kwargs)


class EmotionScheduler(_EmotionCache, Scheduler):
    """vLLM's scheduler."""


class EmotionAsyncScheduler(_EmotionCache, AsyncScheduler):
    """vLLM's scheduler for asynchronous scheduling."""


def separate_emotions() -> None:
    """Wraps vLLM's extra keys of a block's hash, in every module that imported the function by name. Idempotent."""
    original = getattr(kv_cache_utils, _FUNCTION)
    if hasattr(original, "_emovllm"):
        return

    @functools.wraps(original)
    def generate_block_hash_extra_keys(
        request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> tuple[tuple[Any, ...] | None, int]:
        keys, next_mm_idx = original(request, start_token_idx, end_token_idx, start_mm_idx)
        key = _request_key(request)
        if key is not None and end_token_idx > key.first:
            keys = (*(keys or ()), (KEY, key.digest, key.first))
        return keys, next_mm_idx

    generate_block_hash_extra_keys._emovllm = True  # type: ignore[attr-defined]
    users = [kv_cache_utils, block_pool, *(sys.modules[name] for name in _USERS if name in sys.modules)]
    for module in users:
        if getattr(module, _FUNCTION) is original:
            setattr(module, _FUNCTION, generate_block_hash_extra_keys)


class _Key(NamedTuple):
    digest: str
    # The first position injected: with the same emotion and the same tokens, one request's prompt may hold the
    # beginning of another's reply.
    first: int


def _request_key(request: Any) -> _Key | None:
    """Computed once per request: long prompts have many blocks."""
    try:
        return request._emotion_key
    except AttributeError:
        wire = emotion_of(request.sampling_params)
        if wire is None:
            request._emotion_key = None
        else:
            first = 0 if wire["scope"] == "all" else prompt_length(wire, request.num_prompt_tokens) - 1
            request._emotion_key = _Key(cache_key(wire), first)
        return request._emotion_key
