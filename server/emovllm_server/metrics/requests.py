"""Requests as the metrics see them: when each starts and ends, never a step between.

vLLM's `OutputProcessor` keeps the times of each request's first and last token; they are read when the request ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emovllm.emotion import Wire
from emovllm.engine.guarding import acts_of
from emovllm.engine.patching import patches
from emovllm.engine.transport import reply_readout
from emovllm.phases import Automaton
from emovllm_server.metrics.collectors import metrics


@dataclass(frozen=True, slots=True)
class _Request:
    state: Any  # vLLM's RequestState
    emotion: str
    wire: Wire | None
    arrival: float  # seconds since the epoch


# Over the engine's tokens, where its replies may be spared in part.
_automaton: Automaton | None = None
# This process's requests that have not ended, by vLLM's internal id; each of n choices has one.
_running: dict[str, _Request] = {}


def watch(log_stats: bool, automaton: Automaton | None = None) -> None:
    """Wraps vLLM's `OutputProcessor`. Idempotent. automaton: over the engine's tokens, if it knows phases."""
    from vllm.logger import init_logger

    global _automaton
    _automaton = automaton
    for patch in (count_start, count_aborts, count_end):
        patch.install()
    if not log_stats:
        init_logger("vllm.emovllm").warning(
            "emovllm: with --disable-log-stats, vLLM takes no times of tokens: emovllm_time_to_first_token_seconds and "
            "emovllm_time_per_output_token_seconds stay empty"
        )


@patches("vllm.v1.engine.output_processor.OutputProcessor.add_request")
def count_start(add_request: Callable[..., Any], self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    result = add_request(self, request, *args, **kwargs)
    state = self.request_states.get(request.request_id)
    if state is None:
        # The last message of a resumable session, whose engine had ended before.
        _end(request.request_id, "stop")
    elif request.request_id not in _running and request.sampling_params is not None:
        wire = Wire.of(request.sampling_params)
        _running[request.request_id] = _Request(state, metrics().started(wire), wire, request.arrival_time)
    return result


@patches("vllm.v1.engine.output_processor.OutputProcessor.abort_requests")
def count_aborts(abort_requests: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    # A parent's children are aborted by a call of this same function.
    aborted = abort_requests(self, *args, **kwargs)
    for request_id in aborted:
        _end(request_id, "abort")
    return aborted


@patches("vllm.v1.engine.output_processor.OutputProcessor._update_stats_from_finished")
def count_end(
    update_stats_from_finished: Callable[..., Any],
    self: Any,
    req_state: Any,
    finish_reason: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    _end(req_state.request_id, str(finish_reason))
    return update_stats_from_finished(self, req_state, finish_reason, *args, **kwargs)


def _end(request_id: str, reason: str) -> None:
    request = _running.pop(request_id, None)
    if request is None:
        return
    stats = request.state.stats
    if stats is None:
        tokens = request.state.detokenizer.num_output_tokens()
    else:
        tokens = stats.num_generation_tokens
        metrics().timed(request.emotion, stats.first_token_latency, stats.last_token_ts - stats.first_token_ts, tokens)
    metrics().ended(request.emotion, reason, tokens, time.time() - request.arrival)
    wire = request.wire
    if wire is not None and wire.muted and _automaton is not None:
        written = request.state.detokenizer.output_token_ids
        metrics().spared.labels(request.emotion).inc(_automaton.count(wire.within, wire.muted, written))
    metrics().guarded(acts_of(request.state))
    # A reply that was given up is none that anybody got whole.
    if reason != "abort" and (readout := reply_readout(request.state)) is not None:
        metrics().read(request.emotion, readout)
