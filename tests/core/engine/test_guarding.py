"""Guards in the front end: vLLM's own OutputProcessor, fed by hand, as with drafts several tokens a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emovllm.emotion import KEY, Wire
from emovllm.engine import transport
from emovllm.engine.guarding import acts_of, guards_of
from emovllm.engine.transport import readout_of
from emovllm.guards import Guard
from emovllm.readout import Reading

READING = Reading("p" * 64, 0, ("anger", "neutral"))
STOP, FLAG = Guard.parse("anger>0.5x2:stop"), Guard.parse("anger>0.8x1:flag")
TOLD = [{"guard": "anger>0.8x1", "action": "flag", "token": 2}, {"guard": "anger>0.5x2", "action": "stop", "token": 2}]


class Front:
    """A front end without a tokenizer: what it is sent, and what it answers."""

    def __init__(self) -> None:
        from vllm.v1.engine.output_processor import OutputProcessor

        self.processor = OutputProcessor(None, log_stats=False)

    def add(self, asks: bool = False, guards: tuple[Guard, ...] = (FLAG, STOP), **params: Any) -> None:
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        wire = Wire("", {}, "generation", reading=READING, guards=guards, untold=not asks)
        kind = params.pop("output_kind", RequestOutputKind.FINAL_ONLY)
        sampling = SamplingParams(detokenize=False, extra_args={KEY: wire}, output_kind=kind, **params)
        request = EngineCoreRequest(
            request_id="a",
            external_req_id="a",
            prompt_token_ids=[1, 2],
            mm_features=None,
            sampling_params=sampling,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        self.processor.add_request(request, None)

    def step(self, *anger: float, finish: str | None = None, logprobs: bool = False) -> tuple[list[Any], list[str]]:
        """Tokens 10, 11, ... that read as anger like this. Returns: completions, and what the engine is to abort."""
        from vllm.v1.engine import EngineCoreOutput, FinishReason
        from vllm.v1.outputs import LogprobsLists

        rows = np.log(np.array([[chance, 1 - chance] for chance in anger], np.float32))
        count = len(anger)
        lists = LogprobsLists(
            np.arange(10, 10 + count).reshape(-1, 1), -np.ones((count, 1), np.float32), np.ones(count, np.int64)
        )
        output = EngineCoreOutput(
            "a",
            list(range(10, 10 + count)),
            new_logprobs=lists if logprobs else None,
            finish_reason=FinishReason[finish.upper()] if finish else None,
            kv_transfer_params={"emovllm_readout": rows.tobytes()},
        )
        done = self.processor.process_outputs([output], 0.0, None)
        return [completion for each in done.request_outputs for completion in each.outputs], done.reqs_to_abort


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Front:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState

    for owner, name in (
        (OutputProcessor, "add_request"),
        (OutputProcessor, "process_outputs"),
        (RequestState, "_new_completion_output"),
        (RequestOutput, "add"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be put back
    for patch in (transport.remembering, transport.taking, transport.telling, transport.merging):
        patch.install()
    return Front()


def bodies(completion: Any) -> list[dict[str, Any]]:
    return [acted.body() for acted in guards_of(completion)]


@pytest.mark.parametrize("asks", [False, True])
def test_a_reply_ends_in_the_middle_of_a_step(front: Front, asks: bool) -> None:
    front.add(asks, logprobs=0)
    assert front.step(0.1, 0.6, logprobs=True) == ([], [])
    (completion,), aborted = front.step(0.9, 0.9, 0.9, logprobs=True)
    assert aborted == ["a"]
    assert completion.token_ids == [10, 11, 10]
    assert len(completion.logprobs) == 3
    assert completion.cumulative_logprob == pytest.approx(-3)
    assert (completion.finish_reason, completion.stop_reason) == ("stop", "emotion_guard: anger>0.5x2")
    assert bodies(completion) == TOLD
    read = readout_of(completion)
    assert (read is not None) == asks
    if read is not None:
        np.testing.assert_allclose(read.probabilities[:, 0], [0.1, 0.6, 0.9], atol=1e-6)
    # What the engine sends before it knows is nobody's.
    assert front.step(0.9) == ([], [])


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_what_the_engine_ended_is_not_aborted(front: Front, finish: str) -> None:
    front.add()
    (completion,), aborted = front.step(0.1, 0.6, 0.9, 0.2, finish=finish)
    assert aborted == []
    assert completion.token_ids == [10, 11, 12]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", "emotion_guard: anger>0.5x2")


def test_flags_change_nothing(front: Front) -> None:
    front.add(guards=(FLAG,))
    front.step(0.1, 0.9)
    (completion,), aborted = front.step(0.9, 0.9, finish="length")
    assert aborted == []
    assert len(completion.token_ids) == 4
    assert completion.finish_reason == "length"
    assert bodies(completion) == [{"guard": "anger>0.8x1", "action": "flag", "token": 1}]


def test_a_quiet_reply_tells_nothing(front: Front) -> None:
    front.add()
    (completion,), _ = front.step(0.1, 0.6, 0.1, 0.6, finish="length")
    assert guards_of(completion) == []
    assert readout_of(completion) is None


def test_a_stream_tells_with_its_end(front: Front) -> None:
    from vllm.sampling_params import RequestOutputKind

    front.add(output_kind=RequestOutputKind.DELTA)
    (first,), _ = front.step(0.1, 0.6)
    (last,), _ = front.step(0.9, 0.9)
    assert not hasattr(first, "emotion_guard")
    assert (last.token_ids, bodies(last)) == ([10], TOLD)


def test_a_slow_clients_outputs_that_become_one_keep_what_the_last_tells(front: Front) -> None:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import RequestOutputKind

    def output(completions: list[Any]) -> Any:
        return RequestOutput("a", None, [1, 2], None, completions, finished=False)

    front.add(output_kind=RequestOutputKind.DELTA)
    whole = output(front.step(0.1, 0.6)[0])
    whole.add(output(front.step(0.9)[0]), aggregate=True)
    assert whole.outputs[0].token_ids == [10, 11, 10]
    assert bodies(whole.outputs[0]) == TOLD


def test_an_aborted_reply_is_known_as_far_as_it_went(front: Front) -> None:
    front.add(guards=(FLAG,))
    front.step(0.9)
    state = front.processor.request_states["a"]
    front.processor.abort_requests(["a"], internal=True)
    assert [acted.token for acted in acts_of(state)] == [0]
