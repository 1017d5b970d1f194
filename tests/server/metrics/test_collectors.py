"""Counting of requests: vLLM's own OutputProcessor, fed by hand, and a registry of the test's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from emovllm import __version__
from emovllm.applied import Served
from emovllm.emotion import Wire
from emovllm.engine import transport
from emovllm.guards import Guard
from emovllm.phases import BITS, Automaton, Markers
from emovllm.readout import Reading
from emovllm.spec import CircuitSpec, EmotionSpec, ModelSpec
from emovllm_server.metrics import collectors, requests
from emovllm_server.metrics.install import install

DIGEST = "d" * 64
SPEC = CircuitSpec(
    model=ModelSpec(
        id="a/model",
        architecture="LlamaForCausalLM",
        num_hidden_layers=1,
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=1,
        head_dim=8,
        vocab_size=8,
    ),
    emotions=(EmotionSpec(name="anger", recommended=2.0, maximal=4.0), EmotionSpec(name="fear", recommended=0.5)),
)
LABELS = ("anger", "calm", "neutral")
READING = Reading("p" * 64, 0, LABELS)


class Counted:
    """What the registry holds; `deltas` are the changes since the last call, those of 0 left out."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.last: dict[Any, float] = {}
        self.deltas()

    def value(self, name: str, /, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def deltas(self) -> dict[Any, float]:
        now = {
            (sample.name.removeprefix("emovllm_"), *sample.labels.values()): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if not sample.name.endswith(("_created", "_bucket", "_sum"))
        }
        changed = {key: value - self.last.get(key, 0.0) for key, value in now.items()}
        self.last = now
        return {key: value for key, value in changed.items() if value}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    registry = CollectorRegistry()
    monkeypatch.setattr(collectors, "_metrics", collectors.Metrics(registry))
    collectors.circuit_info("first", DIGEST, SPEC)
    return Counted(registry)


class Engine:
    """An OutputProcessor and what an engine core would send it."""

    def __init__(self, log_stats: bool = True) -> None:
        from vllm.v1.engine.output_processor import OutputProcessor

        self.processor = OutputProcessor(None, log_stats=log_stats)

    def request(self, name: str, weights: dict[str, float] | None = None, reads: bool = False, **fields: Any) -> Any:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        changes = fields.pop("wire", {})
        wire = Wire(DIGEST, weights or {}, "generation", reading=READING if reads else None, **changes)
        params = SamplingParams(detokenize=False, extra_args={"emovllm": wire} if weights or reads else None)
        given: dict[str, Any] = {"sampling_params": params, "pooling_params": None, "external_req_id": name, **fields}
        return EngineCoreRequest(
            request_id=name,
            prompt_token_ids=[1, 2],
            mm_features=None,
            arrival_time=time.time() - 0.25,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            **given,
        )

    def add(self, name: str, weights: dict[str, float] | None = None, **fields: Any) -> None:
        self.processor.add_request(self.request(name, weights, **fields), None)

    def read(self, name: str, *probabilities: tuple[float, ...], reason: str | None = None) -> None:
        """One step's tokens of a request, by what the states that wrote them read as."""
        from vllm.v1.engine import EngineCoreOutput, FinishReason

        rows = np.log(np.array(probabilities, np.float32))
        sent = EngineCoreOutput(
            name,
            [5] * len(rows),
            finish_reason=FinishReason[reason.upper()] if reason else None,
            kv_transfer_params={"emovllm_readout": rows.tobytes()},
        )
        self.processor.process_outputs([sent], 10.0, None)

    def step(self, at: float, *outputs: tuple[str, int, str | None]) -> None:
        """One step's tokens, `at` seconds of the engine's clock: each request's name, number and finish reason."""
        from vllm.v1.engine import EngineCoreOutput, FinishReason
        from vllm.v1.metrics.stats import IterationStats

        sent = [
            EngineCoreOutput(name, [5] * number, finish_reason=FinishReason[reason.upper()] if reason else None)
            for name, number, reason in outputs
        ]
        self.processor.process_outputs(sent, at, IterationStats() if self.processor.log_stats else None)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    from vllm.v1.engine.output_processor import OutputProcessor

    for name in ("add_request", "abort_requests", "process_outputs", "_update_stats_from_finished"):
        monkeypatch.setattr(OutputProcessor, name, getattr(OutputProcessor, name))  # to be put back
    for _ in range(2):
        requests.watch(log_stats=True)
    transport.remembering.install()
    transport.taking.install()
    yield Engine()
    assert requests._running == {}


def test_tokens_that_are_spared_are_counted(counted: Counted, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = ["a", "b", "c", "</think>", "d", "e"]
    monkeypatch.setattr(requests, "_automaton", Automaton(pieces, {"thinking": Markers((), ("</think>",))}))
    thinks = {"muted": BITS["thinking"], "within": BITS["thinking"]}
    engine.add("thinks", {"anger": 1.0}, wire=thinks)
    engine.add("answers", {"anger": 1.0}, wire={**thinks, "within": 0})
    engine.add("steered", {"fear": 1.0})
    engine.add("gone", {"anger": 1.0}, wire=thinks)
    counted.deltas()
    # Each token is number 5, which ends nothing.
    engine.step(10.0, ("thinks", 3, None), ("answers", 3, None), ("steered", 3, None), ("gone", 2, None))
    engine.step(10.5, ("thinks", 1, "stop"), ("answers", 1, "stop"), ("steered", 1, "stop"))
    engine.processor.abort_requests(["gone"], internal=True)
    assert {key[1]: value for key, value in counted.deltas().items() if key[0] == "spared_tokens_total"} == {"anger": 6}


def test_requests_and_tokens_are_counted_by_emotion_and_finish_reason(counted: Counted, engine: Engine) -> None:
    engine.add("plain")
    engine.add("angry", {"anger": 3.0})
    engine.add("both", {"anger": -1.0, "fear": 0.5})
    assert counted.deltas() == {
        ("running_requests", "none"): 1,
        ("running_requests", "anger"): 1,
        ("running_requests", "mix"): 1,
        ("emotion_strength_count", "anger"): 2,
        ("emotion_strength_count", "fear"): 1,
    }
    engine.step(10.0, ("plain", 1, None), ("angry", 1, None), ("both", 1, "stop"))
    engine.step(10.5, ("plain", 1, None), ("angry", 1, "length"))
    engine.step(12.0, ("plain", 2, "repetition"))
    assert counted.deltas() == {
        ("running_requests", "none"): -1,
        ("running_requests", "anger"): -1,
        ("running_requests", "mix"): -1,
        ("requests_total", "none", "repetition"): 1,
        ("requests_total", "anger", "length"): 1,
        ("requests_total", "mix", "stop"): 1,
        ("generated_tokens_total", "none", "repetition"): 4,
        ("generated_tokens_total", "anger", "length"): 2,
        ("generated_tokens_total", "mix", "stop"): 1,
        **{
            (f"{name}_count", emotion): 1
            for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds")
            for emotion in ("none", "anger", "mix")
        },
        # Of a single token there is no time per token.
        ("time_per_output_token_seconds_count", "none"): 1,
        ("time_per_output_token_seconds_count", "anger"): 1,
    }


def test_times_are_those_that_vllm_took(counted: Counted, engine: Engine) -> None:
    engine.add("angry", {"anger": 3.0})
    engine.step(10.0, ("angry", 1, None))
    engine.step(11.0, ("angry", 1, None))
    engine.step(16.0, ("angry", 2, "stop"))
    assert counted.value("emovllm_time_per_output_token_seconds_sum", emotion="anger") == pytest.approx(2.0)
    ttft = counted.value("emovllm_time_to_first_token_seconds_sum", emotion="anger")
    e2e = counted.value("emovllm_e2e_request_latency_seconds_sum", emotion="anger")
    assert ttft is not None
    assert e2e is not None
    assert 0.25 <= ttft <= e2e < 5


def test_strengths_are_in_the_units_of_the_request(counted: Counted, engine: Engine) -> None:
    engine.add("angry", {"anger": 3.0})  # 1.5 times the recommended lambda of 2
    engine.add("both", {"anger": -2.0, "fear": 0.5})
    engine.processor.abort_requests(["angry", "both"], internal=True)
    below = {
        le: counted.value("emovllm_emotion_strength_bucket", emotion="anger", le=le) for le in ("-1.0", "1.25", "1.5")
    }
    assert below == {"-1.0": 1, "1.25": 1, "1.5": 2}
    assert counted.value("emovllm_emotion_strength_bucket", emotion="fear", le="0.75") == 0
    assert counted.value("emovllm_emotion_strength_bucket", emotion="fear", le="1.0") == 1


def test_an_aborted_request_counts_with_the_tokens_it_had(counted: Counted, engine: Engine) -> None:
    engine.add("early", {"fear": 0.5})
    engine.add("late", {"fear": 0.5})
    engine.step(10.0, ("late", 1, None))
    engine.step(11.0, ("late", 1, None))
    counted.deltas()
    engine.processor.abort_requests(["late"], internal=False)
    engine.processor.abort_requests(["early", "unknown"], internal=True)
    # What the engine still sends is not counted again.
    engine.step(12.0, ("late", 1, "abort"))
    assert counted.deltas() == {
        ("running_requests", "fear"): -2,
        ("requests_total", "fear", "abort"): 2,
        ("generated_tokens_total", "fear", "abort"): 2,
        ("time_to_first_token_seconds_count", "fear"): 1,
        ("time_per_output_token_seconds_count", "fear"): 1,
    }


def test_each_of_n_choices_counts_once_also_when_their_parent_is_aborted(counted: Counted, engine: Engine) -> None:
    from vllm.v1.engine.parallel_sampling import ParentRequest

    request = engine.request("parent", {"anger": 2.0})
    request.sampling_params.n = 3
    parent = ParentRequest(request)
    for index in range(3):
        child = copy(request)
        child.request_id, child.sampling_params = parent.get_child_info(index)
        engine.processor.add_request(child, None, parent, index)
    assert counted.deltas()["running_requests", "anger"] == 3
    engine.step(10.0, ("0_parent", 4, "length"), ("1_parent", 4, None), ("2_parent", 1, None))
    engine.processor.abort_requests(["parent"], internal=True)
    changed = counted.deltas()
    assert changed["running_requests", "anger"] == -3
    assert changed["requests_total", "anger", "length"] == 1
    assert changed["requests_total", "anger", "abort"] == 2
    assert changed["generated_tokens_total", "anger", "abort"] == 5


def test_a_resumable_session_is_one_request(counted: Counted, engine: Engine) -> None:
    engine.add("session", resumable=True)
    engine.step(10.0, ("session", 3, "length"))
    engine.add("session", resumable=True)
    engine.step(11.0, ("session", 2, "length"))
    assert counted.deltas() == {("running_requests", "none"): 1}
    engine.add("session", resumable=False)
    changed = counted.deltas()
    assert changed["requests_total", "none", "stop"] == 1
    assert changed["generated_tokens_total", "none", "stop"] == 5
    assert changed["running_requests", "none"] == -1


def test_a_request_that_generates_nothing_is_none_of_ours(counted: Counted, engine: Engine) -> None:
    from vllm.pooling_params import PoolingParams

    engine.add("embed", sampling_params=None, pooling_params=PoolingParams(task="embed"))
    engine.processor.abort_requests(["embed"], internal=True)
    assert counted.deltas() == {}


def test_without_vllms_statistics_all_but_the_times_of_tokens_is_counted(counted: Counted, engine: Engine) -> None:
    silent = Engine(log_stats=False)
    silent.add("angry", {"anger": 2.0})
    silent.step(10.0, ("angry", 1, None))
    silent.step(11.0, ("angry", 2, "length"))
    assert counted.deltas() == {
        ("requests_total", "anger", "length"): 1,
        ("generated_tokens_total", "anger", "length"): 3,
        ("emotion_strength_count", "anger"): 1,
        ("e2e_request_latency_seconds_count", "anger"): 1,
    }


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """What is counted where replies may be read."""
    registry = CollectorRegistry()
    monkeypatch.setattr(collectors, "_metrics", collectors.Metrics(registry))
    install(None, {"first": Served("first", SPEC, DIGEST, frozenset(), 0)}, READING)
    return Counted(registry)


def test_what_replies_read_as_is_counted_by_the_emotion_asked_for(reading: Counted, engine: Engine) -> None:
    quiet = Engine(log_stats=False)
    quiet.add("angry", {"anger": 3.0}, reads=True)
    quiet.add("calm", {"anger": 1.0}, reads=True)
    quiet.add("plain", reads=True)
    quiet.add("both", {"anger": 1.0, "fear": 0.5}, reads=True)
    quiet.add("unasked", {"anger": 3.0})
    quiet.read("angry", (0.25, 0.25, 0.5))
    # Of its emotions, what leads is what it reads as over the whole reply, neutral apart.
    quiet.read("angry", (0.35, 0.25, 0.4), (0.3, 0.1, 0.6), reason="stop")
    quiet.read("calm", (0.25, 0.5, 0.25), reason="length")
    quiet.read("plain", (0.5, 0.25, 0.25), reason="length")
    quiet.read("both", (0.5, 0.25, 0.25), reason="length")
    quiet.step(10.0, ("unasked", 1, "length"))
    changed = {key: value for key, value in reading.deltas().items() if key[0].startswith("readout_")}
    assert changed == {
        ("readout_replies_total", "anger"): 2,
        ("readout_replies_total", "none"): 1,
        ("readout_replies_total", "mix"): 1,
        ("readout_leads_total", "anger"): 1,
        ("readout_probability_total", "anger", "anger"): pytest.approx(0.3 + 0.25),
        ("readout_probability_total", "anger", "calm"): pytest.approx(0.2 + 0.5),
        ("readout_probability_total", "anger", "neutral"): pytest.approx(0.5 + 0.25),
        **{
            ("readout_probability_total", emotion, label): value
            for emotion in ("none", "mix")
            for label, value in zip(LABELS, (0.5, 0.25, 0.25), strict=True)
        },
    }


def test_a_reply_that_was_given_up_is_not_counted_as_read(reading: Counted, engine: Engine) -> None:
    engine.add("early", {"anger": 3.0}, reads=True)
    engine.add("late", {"anger": 3.0}, reads=True)
    engine.read("late", (0.5, 0.25, 0.25))
    engine.processor.abort_requests(["early", "late"], internal=True)
    assert reading.value("emovllm_requests_total", emotion="anger", finish_reason="abort") == 2
    assert reading.value("emovllm_readout_replies_total", emotion="anger") == 0


def test_what_is_read_has_its_series_from_the_start_and_only_where_anything_is(
    reading: Counted, counted: Counted
) -> None:
    for emotion in ("anger", "fear", "none", "mix"):
        assert reading.value("emovllm_readout_replies_total", emotion=emotion) == 0
        assert counted.value("emovllm_readout_replies_total", emotion=emotion) is None
        # The probe knows no fear.
        leads = reading.value("emovllm_readout_leads_total", emotion=emotion)
        assert leads == (0 if emotion == "anger" else None)
        for label in LABELS:
            assert reading.value("emovllm_readout_probability_total", emotion=emotion, label=label) == 0


def test_refusals_are_counted_under_a_bounded_set_of_reasons(counted: Counted) -> None:
    assert counted.value("emovllm_refusals_total", reason="over_maximum") == 0
    for reason in ("over_maximum", "over_maximum", "wrong_route", "made\nup"):
        collectors.count_refusal(reason)
    assert counted.deltas() == {
        ("refusals_total", "over_maximum"): 2,
        ("refusals_total", "wrong_route"): 1,
        ("refusals_total", "other"): 1,
    }


def test_circuits_and_versions_are_told(counted: Counted, engine: Engine) -> None:
    import vllm

    class Client:
        log_stats = True
        vllm_config = SimpleNamespace(additional_config={})

    install(Client(), {"first": Served("first", SPEC, DIGEST, frozenset(), 0)})
    install(None, {})
    assert counted.value("emovllm_build_info", version=__version__, vllm_version=vllm.__version__) == 1
    info = {"name": "first", "digest": DIGEST, "model": "a/model", "emotions": "anger,fear"}
    assert counted.value("emovllm_circuit_info", **info) == 1
    collectors.circuit_info("first", DIGEST, SPEC, loaded=False)
    assert counted.value("emovllm_circuit_info", **info) == 0


def test_every_series_of_an_emotion_is_there_from_the_start(counted: Counted) -> None:
    for emotion in ("anger", "fear", "none", "mix"):
        assert counted.value("emovllm_running_requests", emotion=emotion) == 0
        assert counted.value("emovllm_e2e_request_latency_seconds_count", emotion=emotion) == 0
        for reason in collectors.FINISH_REASONS:
            assert counted.value("emovllm_requests_total", emotion=emotion, finish_reason=reason) == 0


def test_finish_reasons_are_vllms() -> None:
    from vllm.v1.engine import FinishReason

    assert {str(reason) for reason in FinishReason} <= set(collectors.FINISH_REASONS)


def test_vllm_leaves_our_collectors_in_the_registry() -> None:
    from prometheus_client import REGISTRY
    from vllm.v1.metrics.prometheus import unregister_vllm_metrics

    ours = collectors.metrics()
    unregister_vllm_metrics()
    assert ours.requests in REGISTRY._collector_to_names


def test_guards_are_counted_where_a_reply_ends(counted: Counted, engine: Engine) -> None:
    guards = (Guard.parse("anger>0.5x1:flag"), Guard.parse("anger>0.8x1:stop"))
    install(None, {}, READING, guards)
    assert counted.value("emovllm_guard_total", guard="anger>0.8x1", action="stop") == 0
    wire = Wire("", {}, "generation", reading=READING, guards=guards, untold=True)
    counted.deltas()
    # Where vLLM takes no times of tokens, those that are left are counted.
    engine = Engine(log_stats=False)
    for name in ("ends", "leaves"):
        request = engine.request(name)
        request.sampling_params.extra_args = {"emovllm": wire}
        engine.processor.add_request(request, None)
        engine.read(name, (0.6, 0.2, 0.2), (0.7, 0.2, 0.1))
    engine.read("ends", (0.9, 0.05, 0.05), (0.6, 0.2, 0.2))
    engine.processor.abort_requests(["leaves"], internal=True)
    changed = {
        key: value for key, value in counted.deltas().items() if key[0].startswith(("guard", "req", "gen", "rea"))
    }
    assert changed == {
        ("guard_total", "anger>0.5x1", "flag"): 2,
        ("guard_total", "anger>0.8x1", "stop"): 1,
        ("requests_total", "none", "stop"): 1,
        ("requests_total", "none", "abort"): 1,
        # What was cut off is not counted; and that a guard reads makes no reply one that asked.
        ("generated_tokens_total", "none", "stop"): 3,
        ("generated_tokens_total", "none", "abort"): 2,
    }
