"""Emotions whose strength depends on what was written and read, against Hugging Face: on both runners, in every order
of work. What a gain is, by itself, is in tests/core/engine/test_gains.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emovllm.emotion import KEY
from support.circuits import random_circuit
from support.engine import Ask, Engine, assert_same
from support.models import tiny_model
from support.oracle import Oracle
from support.series import Series, config_of, mixed_batch, reading, settings

pytestmark = pytest.mark.engine

TOKENS = 16
EMOTIONS = ["anger", "fear", "happiness", "disgust", "sadness"]
DRAFTS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"), num_hidden_layers=4, initializer_range=0.2)


@pytest.fixture(scope="module")
def circuit(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_circuit(model, tmp_path_factory.mktemp("circuits") / "in-time", probe=True)


@pytest.fixture(scope="module")
def oracle(model: str, circuit: Path) -> Oracle:
    return Oracle(model, circuit)


@pytest.fixture(scope="module")
def asks() -> list[Ask]:
    """The mixed batch, and beside it each of its emotions with something that changes in time."""
    in_time: list[dict[str, Any]] = [
        {"emotion_target": {"level": 0.9, "rate": 2.0}},
        {"emotion_target": 0.1},
        {"emotion_target": {"level": 0.6, "rate": 4.0}, "emotion_schedule": {"hold": 3, "half_life": 4}},
        {"emotion_target": {"level": 1.0, "rate": 0.5}, "emotion_scope": "prompt_tail:4"},
        {"emotion_scope": "prompt_tail:7"},
    ]
    mixed = mixed_batch()
    changing = [
        Ask(ask.prompt[: 30 + number], {"emotion": emotion, "emotion_strength": 1.5, **in_time[number % len(in_time)]})
        for number, (ask, emotion) in enumerate(zip(mixed, EMOTIONS * 2, strict=False))
    ]
    return reading(mixed[:10] + changing)


def check(engine: Engine, oracle: Oracle, asks: list[Ask], span: int = 1) -> None:
    oracle.span = span
    replies = engine.generate(asks, TOKENS)
    assert_same(replies, oracle.generate(asks, TOKENS, replies))


def test_what_changes_in_time_moves_the_oracle(oracle: Oracle, asks: list[Ask]) -> None:
    for ask in asks[10:]:
        level = {name: value for name, value in ask.fields.items() if name not in ("emotion_target", "emotion_scope")}
        changed, same = oracle.generate([ask, Ask(ask.prompt, level)], TOKENS)
        assert changed.logprobs != pytest.approx(same.logprobs, abs=0.02), ask.fields


@pytest.fixture(scope="module", params=["V1", "V2"])
def runner(request: pytest.FixtureRequest) -> Series:
    series: Series = request.getfixturevalue("series" if request.param == "V1" else "series_v2")
    return series


def test_a_mixed_batch(runner: Series, model: str, circuit: Path, oracle: Oracle, asks: list[Ask]) -> None:
    check(runner.start(model, circuit), oracle, asks)


@pytest.mark.parametrize("caching", [False, True])
def test_chunks_and_preemption(
    runner: Series, model: str, circuit: Path, oracle: Oracle, asks: list[Ask], caching: bool
) -> None:
    tight = {"max_num_batched_tokens": 32, "num_gpu_blocks_override": 8, "enable_prefix_caching": caching}
    engine = runner.start(model, circuit, **tight)
    for _ in range(2):
        check(engine, oracle, asks)
    assert engine.metric("vllm:num_preemptions") > 0


def test_drafts(runner: Series, model: str, circuit: Path, oracle: Oracle, asks: list[Ask]) -> None:
    ngram = {"method": "ngram", "num_speculative_tokens": DRAFTS, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    engine = runner.start(model, circuit, speculative_config=ngram, num_gpu_blocks_override=10)
    check(engine, oracle, asks, 1 + DRAFTS)
    assert engine.metric("vllm:spec_decode_num_accepted_tokens") > 0
    assert engine.metric("vllm:num_preemptions") > 0


@pytest.fixture(scope="module")
def begin(model: str, circuit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    """`begin(**config)`: an engine with asynchronous scheduling, which is told a token when the next is under way."""
    folder = tmp_path_factory.mktemp("async")
    caches = {"VLLM_CACHE_ROOT": str(folder / "cache")}
    with Engine(folder / "log", caches, hook="async_scheduling") as engine:

        def start(**config: Any) -> Engine:
            engine.restart(**config_of(model, {KEY: settings(circuit)}, **config))
            return engine

        yield start


def test_asynchronous_scheduling(begin: Callable[..., Engine], oracle: Oracle, asks: list[Ask]) -> None:
    engine = begin(max_num_batched_tokens=32, num_gpu_blocks_override=8)
    check(engine, oracle, asks)
    assert engine.metric("vllm:num_preemptions") > 0
    assert "emovllm.engine.scheduler.EmotionAsyncScheduler" in engine.log()


def test_asynchronous_scheduling_with_drafts(
    begin: Callable[..., Engine], model: str, oracle: Oracle, asks: list[Ask]
) -> None:
    # A schedule goes by the token's place, which the host does not know then: it is refused.
    asks = [ask for ask in asks if "emotion_schedule" not in ask.fields]
    draft = {"method": "draft_model", "model": model, "num_speculative_tokens": DRAFTS}
    engine = begin(speculative_config=draft, max_num_batched_tokens=64, num_gpu_blocks_override=14)
    check(engine, oracle, asks, 1 + DRAFTS)
    assert engine.metric("vllm:spec_decode_num_accepted_tokens") > 0
    assert engine.metric("vllm:num_preemptions") > 0
