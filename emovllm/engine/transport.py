"""How a read-out travels: from a worker's output to the scheduler's, with it to the front end, and there onto the
output of its request. No call of its own, and nothing for requests that did not ask."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np

from emovllm.emotion import KEY, Wire
from emovllm.engine import guarding
from emovllm.engine.patching import patches
from emovllm.engine.readout import rows_of
from emovllm.engine.registry import served_last
from emovllm.engine.requests import Record, current
from emovllm.readout import Reading, Readout


def install() -> None:
    for patch in (remembering, taking, telling, merging, noting):
        patch.install()


# Of the rows, among the parameters of KV connectors.
_ROWS = f"{KEY}_readout"


def add_rows(engine_outputs: dict[int, Any], runner_output: Any) -> dict[int, Any]:
    """The scheduler's outputs, by client, with what was read for each request: among the parameters of KV connectors,
    the one place of theirs that takes what it is given."""
    rows = rows_of(runner_output)
    if rows is None:
        return engine_outputs
    for outputs in engine_outputs.values():
        for output in outputs.outputs:
            read = rows.of(output.request_id, len(output.new_token_ids))
            if read is not None:
                output.kv_transfer_params = {**(output.kv_transfer_params or {}), _ROWS: read.tobytes()}
    return engine_outputs


class _Collected:
    """What was read for one request so far."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._rows: list[np.ndarray] = []

    def add(self, data: bytes) -> None:
        self._rows.append(np.frombuffer(data, np.float32).reshape(-1, len(self._reading.labels)))

    def part(self, first: int, end: int) -> Readout:
        """Of the tokens from `first` to before `end`."""
        if len(self._rows) > 1:
            self._rows = [np.concatenate(self._rows)]
        rows = self._rows[0] if self._rows else np.zeros((0, len(self._reading.labels)), np.float32)
        return Readout(self._reading, rows[first:end])


def readout_of(completion: Any) -> Readout | None:
    """The read-out of one of vLLM's completions, if it was asked for."""
    return getattr(completion, "emotion_readout", None)


def reply_readout(state: Any) -> Readout | None:
    """The read-out of all that a request wrote so far, if it asked; state: vLLM's RequestState."""
    collected = getattr(state, "emotion_collected", None)
    return None if collected is None else collected.part(0, state.detokenizer.num_output_tokens())


@patches("vllm.v1.engine.output_processor.OutputProcessor.add_request")
def remembering(add_request: Callable[..., Any], self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    result = add_request(self, request, *args, **kwargs)
    wire = Wire.read_for(request.sampling_params)
    if wire is not None and wire.reading is not None:
        state = self.request_states[request.request_id]
        guarding.watch(state, wire)
        if not wire.untold:
            state.emotion_collected = _Collected(wire.reading)
    return result


@patches("vllm.v1.engine.output_processor.OutputProcessor.process_outputs")
def taking(
    process_outputs: Callable[..., Any], self: Any, engine_core_outputs: Sequence[Any], *args: Any, **kwargs: Any
) -> Any:
    read = []
    for output in engine_core_outputs:
        params = output.kv_transfer_params
        if params is not None and _ROWS in params:
            output.kv_transfer_params = {name: value for name, value in params.items() if name != _ROWS} or None
            state = self.request_states.get(output.request_id)
            if (collected := getattr(state, "emotion_collected", None)) is not None:
                collected.add(params[_ROWS])
            read.append((state, output, params[_ROWS]))
    guarding.see(read)
    return process_outputs(self, engine_core_outputs, *args, **kwargs)


@patches("vllm.v1.engine.output_processor.RequestState._new_completion_output")
def telling(_new_completion_output: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    output = _new_completion_output(self, *args, **kwargs)
    collected = getattr(self, "emotion_collected", None)
    if collected is not None:
        # Tokens after a stop string are dropped; a stream's output holds the last ones alone.
        end = self.detokenizer.num_output_tokens()
        output.emotion_readout = collected.part(end - len(output.token_ids), end)
    guarding.tell(self, output)
    return output


# Where a client is slower than the engine, outputs that wait for it become one.
@patches("vllm.outputs.RequestOutput.add")
def merging(add: Callable[..., Any], self: Any, next_output: Any, aggregate: bool) -> None:
    merged = {}
    for completion in self.outputs if aggregate else ():
        for following in next_output.outputs:
            read, more = readout_of(completion), readout_of(following)
            if completion.index == following.index and read is not None and more is not None:
                merged[completion.index] = read + more
    ended = [completion for completion in next_output.outputs if guarding.told(completion)]
    acted = {completion.index: guarding.guards_of(completion) for completion in ended}
    add(self, next_output, aggregate)
    for completion in self.outputs:
        if completion.index in merged:
            completion.emotion_readout = merged[completion.index]
        if completion.index in acted:
            completion.emotion_guard = acted[completion.index]


@patches("vllm.v1.engine.async_llm.AsyncLLM.generate")
def noting(generate: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Notes, for whoever answers an HTTP request, what was read for it, and what guards did."""
    outputs = generate(self, *args, **kwargs)
    record = current.get()
    if record is None or (record.detail is None and not served_last().policy.guards):
        return outputs
    params = kwargs["sampling_params"] if "sampling_params" in kwargs else args[1]
    # As vLLM numbers the choices of several prompts.
    first = record.readouts.prompts * (params.n or 1)
    record.readouts.prompts += 1
    return _noted(outputs, record, first)


async def _noted(outputs: AsyncGenerator[Any, None], record: Record, first: int) -> AsyncGenerator[Any, None]:
    # Whoever stops listening has the engine stop, as without us.
    async with aclosing(outputs):
        async for output in outputs:
            for completion in output.outputs:
                if (read := readout_of(completion)) is not None:
                    record.readouts.add(first + completion.index, read)
                if acted := guarding.guards_of(completion):
                    record.acted[first + completion.index] = acted
            yield output
