"""Prompts that hold a reply: where it begins (`emotion_from`), and scores that would not be the emotion's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emovllm.emotion import Wire
from emovllm.engine.transfer import PARAMS


def refuse_plain_scores(wire: Wire, params: Any) -> None:
    """Refuses scores of a prompt that the emotion does not reach, though the answer would tell of it.

    params: of the request, whose emotion is `wire`. Raises: VLLMValidationError.
    """
    scored = params.prompt_logprobs is not None or getattr(params, "prompt_logprob_token_ids", None) is not None
    if scored and wire.weights and wire.scope != "all" and wire.prompt_len is None:
        raise _refused(
            f"log-probabilities of the prompt would be the plain model's, for the scope {wire.scope} steers what "
            'comes after it: give emotion_from, how many of its tokens are context, or emotion_scope "all"; for the '
            'plain model\'s, emotion "none"'
        )


def refuse_beams(wire: Wire) -> None:
    """Raises: VLLMValidationError where a reply begins within the prompt of a beam search."""
    if wire.prompt_len is not None:
        raise _refused(
            "emotion_from cannot be combined with beam search, whose beams are prompts themselves; score a prompt with "
            "prompt_logprobs, or echo and logprobs"
        )


def begun(wire: Wire, params: Any, prompt_len: int) -> Wire:
    """With the place where the reply begins, counted from the prompt's first token.

    Args:
        params: of the request, in `extra_args` of which `wire` is no more than what is asked.
        prompt_len: as vLLM takes it.
    Raises: VLLMValidationError.
    """
    if wire.prompt_len is None:
        return wire
    extra = params.extra_args or {}
    if isinstance(extra.get(PARAMS), Mapping):
        raise _refused(
            f"emotion_from cannot be combined with {PARAMS}: another instance computes the prompt, and does not know "
            "where its reply begins"
        )
    start = wire.prompt_len if wire.prompt_len > 0 else prompt_len + wire.prompt_len
    if not 1 <= start <= prompt_len:
        raise _refused(
            f"emotion_from {wire.prompt_len} is not within the prompt, which has {prompt_len} tokens: it may be from 1 "
            f"to {prompt_len}, or from {1 - prompt_len} to -1, which counts from the end"
        )
    return wire._replace(prompt_len=start if wire.weights else None)


def _refused(message: str) -> Exception:
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(message, parameter="emotion_from")
