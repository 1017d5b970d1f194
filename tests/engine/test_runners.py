"""Both model runners against Hugging Face with hooks: V1, compiled by Inductor, and V2, the default on a GPU, here with
its Triton kernels interpreted.

Interpreted kernels walk over the vocabulary, hence a model with a tiny one. Where an emotion is added follows from
positions alone, which a tiny model has as any other: the default model's own tests are those of test_exactness.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.circuits import random_circuit
from support.engine import Ask, Engine, assert_exact, assert_same, mixed_batch
from support.models import tiny_model
from support.oracle import Oracle
from support.series import Series, reading

pytestmark = pytest.mark.engine

VOCABULARY = 128
BLOCK = 32
TOKENS = 16
Text = Callable[[int, int], list[int]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(
        tmp_path_factory.mktemp("tiny"), vocab_size=VOCABULARY, max_position_embeddings=512, initializer_range=0.3
    )


@pytest.fixture(scope="module")
def circuit(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_circuit(model, tmp_path_factory.mktemp("circuits") / "tiny", probe=True)


@pytest.fixture(scope="module")
def oracle(model: str, circuit: Path) -> Oracle:
    return Oracle(model, circuit)


@pytest.fixture(scope="module")
def text_of() -> Text:
    return lambda seed, length: np.random.default_rng(seed).integers(2, VOCABULARY, length).tolist()


@pytest.fixture(scope="module")
def mixed(text_of: Text) -> list[Ask]:
    in_time = [{"emotion_target": {"level": 0.9, "rate": 2.0}}, {"emotion_scope": "prompt_tail:5"}]
    changing = [Ask(text_of(80, 40), {"emotion": "fear", **fields}) for fields in in_time]
    return reading(mixed_batch(text_of) + changing)


@pytest.fixture(scope="module")
def plain(mixed: list[Ask]) -> list[Ask]:
    """No emotion, or one of no strength."""
    nothing: list[dict[str, Any]] = [{}, {"emotion": "fear", "emotion_strength": 0}]
    return [Ask(ask.prompt, nothing[number % 2]) for number, ask in enumerate(mixed)]


class Runner:
    """Engines of one runner, one after another; the one that runs is kept where a test asks for the like."""

    def __init__(self, series: Series, model: str, circuit: Path, compiled: dict[str, str]) -> None:
        self._series, self._model, self._circuit = series, model, circuit
        self._compiled = compiled
        self._running: tuple[Any, Engine] | None = None

    def start(self, *, steered: bool = True, compiled: bool = True, **config: Any) -> Engine:
        asked = (steered, compiled, config)
        if self._running is None or self._running[0] != asked:
            defaults = {"max_model_len": 512, "max_num_seqs": 64, "enforce_eager": not compiled}
            circuit, env = self._circuit if steered else None, self._compiled if compiled else None
            self._running = asked, self._series.start(self._model, circuit, env, **{**defaults, **config})
        # Once in the log of its process, whose engines are all of one runner.
        assert ("Using V2 Model Runner" in self._running[1].log()) == ("VLLM_CPU_CI_ENV" in self._compiled)
        return self._running[1]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("V1", marks=pytest.mark.xdist_group("V1")),
        pytest.param("V2", marks=pytest.mark.xdist_group("V2")),
    ],
)
def runner(
    request: pytest.FixtureRequest, model: str, circuit: Path, tmp_path_factory: pytest.TempPathFactory
) -> Runner:
    if request.param == "V2":
        # Dynamo traces the model as ever; the graph then runs without Inductor.
        return Runner(request.getfixturevalue("series_v2"), model, circuit, {"VLLM_CPU_CI_ENV": "1"})
    # A compile cache that begins empty: what one engine compiled, another might load.
    root = tmp_path_factory.mktemp("compiled")
    caches = {"VLLM_CACHE_ROOT": str(root / "vllm"), "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor")}
    return Runner(request.getfixturevalue("series"), model, circuit, {**caches, "VLLM_USE_AOT_COMPILE": "0"})


def test_the_oracle_itself_is_moved_by_every_emotion(oracle: Oracle, mixed: list[Ask], runner: Runner) -> None:
    plain = oracle.generate([Ask(ask.prompt) for ask in mixed], TOKENS)
    for ask, steered, unsteered in zip(mixed, oracle.generate(mixed, TOKENS), plain, strict=True):
        moved = ask.fields.get("emotion_strength", 1.0) != 0 and "emotion" in ask.fields
        same = steered.logprobs == pytest.approx(unsteered.logprobs, abs=0.02)
        assert same != moved, ask.fields


def test_plain_requests_are_bit_identical_in_eager_mode(runner: Runner, plain: list[Ask]) -> None:
    expected = runner.start(steered=False, compiled=False).generate([Ask(ask.prompt) for ask in plain], TOKENS)
    assert_same(runner.start(compiled=False).generate(plain, TOKENS), expected, tolerance=0)


def test_a_mixed_batch_in_eager_mode_equals_the_oracle(runner: Runner, oracle: Oracle, mixed: list[Ask]) -> None:
    assert_exact(runner.start(compiled=False), oracle, mixed, TOKENS)


def test_a_steered_request_does_not_change_its_batch_neighbours(runner: Runner, mixed: list[Ask]) -> None:
    engine = runner.start(compiled=False)
    neighbours = [Ask(ask.prompt) for ask in mixed[:6]]
    others = [ask.prompt for ask in mixed[6:12]]
    alone = engine.generate(neighbours + [Ask(prompt) for prompt in others], TOKENS)
    angry = [Ask(prompt, {"emotion": "anger", "emotion_strength": 3}) for prompt in others]
    beside = engine.generate(neighbours + angry, TOKENS)
    assert_same(beside[:6], alone[:6], tolerance=0)
    assert all(a.tokens != b.tokens for a, b in zip(beside[6:], alone[6:], strict=True))


def prefix_cache_hits(engine: Engine, prompts: list[list[int]], fields: list[dict[str, Any]]) -> float:
    # Once before, so that the counter has been read.
    engine.generate([Ask(list(range(2, 12)))], 1)
    before = engine.metric("vllm:prefix_cache_hits")
    for prompt in prompts:
        for asked in fields:
            engine.generate([Ask(prompt, asked)], 2)
    return engine.metric("vllm:prefix_cache_hits") - before


def test_a_compiled_engine_that_starts_after_a_plain_one_equals_the_oracle(
    runner: Runner, oracle: Oracle, mixed: list[Ask], plain: list[Ask], text_of: Text
) -> None:
    prompts = [text_of(50 + extra, BLOCK * 4 + extra) for extra in (0, 1, 7)]
    emotions = [{"emotion": name} for name in ("anger", "fear", "happiness")] + [{}, {"emotion": "anger"}]
    without = runner.start(steered=False)
    unsteered = without.generate([Ask(ask.prompt) for ask in plain], TOKENS)
    shared = prefix_cache_hits(without, prompts, [{} for _ in emotions])
    # A prompt of 4 whole blocks recomputes its last one; the two longer ones find all 4.
    assert shared == (len(emotions) - 1) * BLOCK * (3 + 4 + 4)

    # With the same compile cache: a graph without sites would fail here.
    engine = runner.start()
    assert_exact(engine, oracle, mixed, TOKENS)
    assert_same(engine.generate(plain, TOKENS), unsteered, tolerance=1e-5)
    assert prefix_cache_hits(engine, prompts, emotions) == shared


def test_repeats_across_emotions_on_block_boundaries_equal_the_oracle(
    runner: Runner, oracle: Oracle, text_of: Text
) -> None:
    emotions: list[dict[str, Any]] = [{"emotion": "anger"}, {}, {"emotion": {"anger": 0.5}}]
    emotions += [{"emotion": "anger", "emotion_scope": scope} for scope in ("all", "prompt_last")]
    prompts = [text_of(20 + length, length) for length in (BLOCK * 2, BLOCK * 2 + 1, BLOCK * 3 - 1)]
    asks = [Ask(prompt, asked) for prompt in prompts for asked in emotions]
    # Long enough to fill a block of generated tokens: the second time around, the cache is full of every emotion's.
    tokens = BLOCK + 2
    expected = oracle.generate(asks, tokens)
    engine = runner.start()
    assert_same(engine.generate(asks, tokens), expected)
    assert_same(engine.generate(asks, tokens), expected)
    assert_same([engine.generate([ask], tokens)[0] for ask in asks[:5]], expected[:5])


def test_the_next_turn_of_a_conversation_equals_the_oracle(runner: Runner, oracle: Oracle, text_of: Text) -> None:
    first = [Ask(text_of(40, BLOCK * 2), fields) for fields in ({"emotion": "anger"}, {"emotion": "fear"}, {})]
    engine = runner.start()
    replies = engine.generate(first, BLOCK * 2)
    # What was said under one emotion is then the prompt of another: its cached blocks are not the prompt's.
    second = [
        Ask(ask.prompt + reply.tokens + text_of(41, 9), fields)
        for ask, reply in zip(first, replies, strict=True)
        for fields in ({"emotion": "anger"}, {"emotion": "sadness"}, {}, {"emotion": "fear", "emotion_scope": "all"})
    ]
    assert_exact(engine, oracle, second, TOKENS)


def test_chunked_prefill_equals_the_oracle(runner: Runner, oracle: Oracle, mixed: list[Ask]) -> None:
    engine = runner.start(max_num_batched_tokens=16, max_num_seqs=16)
    assert_exact(engine, oracle, mixed, TOKENS)


def test_preempted_requests_equal_the_oracle(runner: Runner, oracle: Oracle, mixed: list[Ask]) -> None:
    engine = runner.start(num_gpu_blocks_override=20, enable_prefix_caching=False)
    replies = engine.generate(mixed, BLOCK + 8)
    assert engine.metric("vllm:num_preemptions") > 0
    assert_same(replies, oracle.generate(mixed, BLOCK + 8, replies))


def test_drafts_by_ngrams_equal_the_oracle(runner: Runner, oracle: Oracle, mixed: list[Ask]) -> None:
    repeating = [Ask((ask.prompt * 8)[:40], ask.fields) for ask in mixed]
    speculation = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 1}
    engine = runner.start(compiled=False, speculative_config=speculation)
    replies = engine.generate(repeating, 24)
    accepted = engine.metric("vllm:spec_decode_num_accepted_tokens")
    assert 0 < accepted < engine.metric("vllm:spec_decode_num_draft_tokens")
    assert_same(replies, oracle.generate(repeating, 24, replies, span=4))
