"""Prefill and decode on two instances: both must have steered alike, and the decode instance sees to it.

The prefill instance's answer holds parameters by which the router has the decode instance fetch keys and values. Ours
go with them: what was injected. The router passes them on, and a request whose own emotion is another is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emovllm.emotion import KEY, NONE, Wire

# Where vLLM has a request's parameters for connectors, among its `extra_args`.
PARAMS = "kv_transfer_params"


def injected(wire: Wire | None) -> str:
    """A stable text for what two instances must agree on: the circuit, the emotion and where it begins."""
    return wire.cache_key() if wire is not None else NONE


def accept(params: Any, prompt_len: int) -> None:
    """Checks where a request's keys and values come from, or go.

    Args:
        params: sampling parameters, whose emotion is resolved; it is told the prompt's length, for vLLM has a prefill
            instance of models with states compute all tokens of a prompt but the last one.
    Raises: VLLMValidationError, which the server turns into a 400.
    """
    transfer = (params.extra_args or {}).get(PARAMS)
    if not isinstance(transfer, Mapping):
        return
    wire = Wire.of(params)
    if transfer.get("do_remote_prefill"):
        _compare(transfer.get(KEY), injected(wire))
    elif transfer.get("do_remote_decode") and transfer.get("remote_block_ids"):
        raise _refused(
            "keys and values of a reply cannot be loaded for a prompt that quotes it, where nothing is steered; send "
            "the prompt without remote_block_ids"
        )
    if wire is not None and wire.prompt_len is None:
        params.extra_args = {**params.extra_args, KEY: wire._replace(prompt_len=prompt_len)}


def _compare(theirs: Any, ours: str) -> None:
    if theirs is None:
        raise _refused(
            f"the prefill instance did not say what it steered: {PARAMS} lacks {KEY!r}. Serve the circuit from it as "
            "well, and have the router pass on all that it answers"
        )
    if theirs != ours:
        raise _refused(
            f"the prefill instance steered {str(theirs)[:300]}, and this request asks for {ours[:300]}; send both "
            "instances the same emotion, and serve the same circuit and defaults from both"
        )


def _refused(message: str) -> Exception:
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(message, parameter=PARAMS)
