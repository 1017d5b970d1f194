"""Emotions whose strength depends on what was written and read, against Hugging Face: on both runners, in every order
of work. What a gain is, by itself, is in tests/core/engine/test_gains.py."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from emovllm.emotion import KEY
from emovllm.guards import Guard
from emovllm.phases import BITS, Automaton, Markers
from emovllm.probe import probabilities
from support.engine import Ask, Engine, assert_same
from support.oracle import Oracle
from support.series import Series, config_of, mixed_batch, reading, settings

pytestmark = pytest.mark.engine

TOKENS = 16
SIZE = 128
MARKERS = ["</think>", "<tool_call>", "</tool_call>", "<think>"]
EMOTIONS = ["anger", "fear", "happiness", "disgust", "sadness"]
DRAFTS = 3
IN_TIME = ("emotion_target", "emotion_scope", "emotion_mute")


@pytest.fixture(scope="module")
def spoken(model: str, circuit: Path, tmp_path_factory: pytest.TempPathFactory) -> Spoken:
    """The model with a tokenizer whose markers are tokens that its replies do have."""
    replies = Oracle(model, circuit).generate(
        [Ask(ask.prompt, {"emotion": name}) for ask in mixed_batch() for name in EMOTIONS[:2]], TOKENS
    )
    often = Counter(token for reply in replies for token in reply.tokens[2:]).most_common(len(MARKERS))
    markers = dict(zip([token for token, _ in often], MARKERS, strict=True))
    names = [markers.get(number, f"w{number}") for number in range(SIZE)]
    unknown = next(name for name in names if name not in MARKERS)
    words = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token=unknown))
    words.pre_tokenizer = WhitespaceSplit()
    folder = tmp_path_factory.mktemp("spoken") / "model"
    shutil.copytree(model, folder)
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token=unknown).save_pretrained(folder)
    return Spoken(str(folder), names)


class Spoken(NamedTuple):
    """names: each token's."""

    model: str
    names: list[str]

    def opening(self, prompt: list[int]) -> int:
        """The phases that a prompt leaves open, by vLLM's parser of DeepSeek R1: a reply begins with thinking."""
        told = [self.names[token] for token in prompt if "think>" in self.names[token]]
        return 0 if told and told[-1] == "</think>" else BITS["thinking"]

    def config(self, circuit: Path) -> dict[str, Any]:
        """With vLLM's parsers."""
        return {
            "skip_tokenizer_init": False,
            "reasoning_parser": "deepseek_r1",
            "additional_config": {KEY: {**settings(circuit), "tool_parser": "hermes"}},
        }


@pytest.fixture(scope="module")
def oracle(spoken: Spoken, circuit: Path) -> Oracle:
    oracle = Oracle(spoken.model, circuit)
    oracle.opening = spoken.opening
    oracle.automaton = Automaton(
        [f" {name}" for name in spoken.names],
        {
            "thinking": Markers(("<think>",), ("</think>",)),
            "tools": Markers(("<tool_call>",), ("</tool_call>",)),
        },
    )
    return oracle


@pytest.fixture(scope="module")
def asks() -> list[Ask]:
    """The mixed batch, and beside it emotions with something that changes in time."""
    both = {"emotion_scope": "answer", "emotion_mute": ["tools"]}
    in_time: list[dict[str, Any]] = [
        {"emotion_target": {"level": 0.9, "rate": 2.0}},
        {"emotion_scope": "answer"},
        {"emotion_target": 0.1},
        {"emotion_mute": ["tools"]},
        {"emotion_target": {"level": 0.6, "rate": 4.0}, "emotion_schedule": {"hold": 3, "half_life": 4}},
        both,
        {"emotion_target": {"level": 1.0, "rate": 0.5}, "emotion_scope": "prompt_tail:4"},
        {**both, "emotion_target": {"level": 0.9, "rate": 2.0}},
        {"emotion_scope": "prompt_tail:7"},
        {"emotion_scope": "answer", "emotion_schedule": [[0, 1], [12, 0.5]]},
        {"emotion_scope": "all", "emotion_mute": ["tools"]},
    ]
    mixed = mixed_batch()
    changing = [
        Ask(ask.prompt[: 30 + number], {"emotion": emotion, "emotion_strength": 1.5, **fields})
        for number, (ask, emotion, fields) in enumerate(zip(mixed, EMOTIONS * 3, in_time, strict=False))
    ]
    return reading(mixed[:10] + changing)


def check(engine: Engine, oracle: Oracle, asks: list[Ask], span: int = 1) -> None:
    replies = engine.generate(asks, TOKENS)
    assert_same(replies, oracle.generate(asks, TOKENS, replies, span=span))


def test_what_changes_in_time_moves_the_oracle(oracle: Oracle, asks: list[Ask]) -> None:
    for ask in asks[10:]:
        level = {name: value for name, value in ask.fields.items() if name not in IN_TIME}
        changed, same = oracle.generate([ask, Ask(ask.prompt, level)], TOKENS)
        assert changed.logprobs != pytest.approx(same.logprobs, abs=0.02), ask.fields


def test_replies_go_through_the_phases(oracle: Oracle, asks: list[Ask]) -> None:
    spared = [ask for ask in asks if ask.fields.get("emotion_scope") == "answer" or "emotion_mute" in ask.fields]
    assert oracle.automaton is not None
    phases = set()
    for ask, reply in zip(spared, oracle.generate(spared, TOKENS), strict=True):
        start = oracle.automaton.start(oracle.opening(ask.prompt))
        states = [start, *oracle.automaton.advance(start, reply.tokens)]
        phases |= {int(oracle.automaton.spared[state]) for state in states}
    assert phases >= {0, BITS["thinking"], BITS["tools"]}


@pytest.fixture(scope="module", params=["V1", "V2"])
def runner(request: pytest.FixtureRequest) -> Series:
    series: Series = request.getfixturevalue("series" if request.param == "V1" else "series_v2")
    return series


def test_a_mixed_batch(runner: Series, spoken: Spoken, circuit: Path, oracle: Oracle, asks: list[Ask]) -> None:
    check(runner.start(spoken.model, None, **spoken.config(circuit)), oracle, asks)


@pytest.mark.parametrize("caching", [False, True])
def test_chunks_and_preemption(
    runner: Series, spoken: Spoken, circuit: Path, oracle: Oracle, asks: list[Ask], caching: bool
) -> None:
    tight = {"max_num_batched_tokens": 32, "num_gpu_blocks_override": 8, "enable_prefix_caching": caching}
    engine = runner.start(spoken.model, None, **spoken.config(circuit), **tight)
    for _ in range(2):
        check(engine, oracle, asks)
    assert engine.metric("vllm:num_preemptions") > 0


def test_drafts(runner: Series, spoken: Spoken, circuit: Path, oracle: Oracle, asks: list[Ask]) -> None:
    ngram = {"method": "ngram", "num_speculative_tokens": DRAFTS, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    engine = runner.start(
        spoken.model, None, **spoken.config(circuit), speculative_config=ngram, num_gpu_blocks_override=10
    )
    check(engine, oracle, asks, 1 + DRAFTS)
    assert engine.metric("vllm:spec_decode_num_accepted_tokens") > 0
    assert engine.metric("vllm:num_preemptions") > 0


@pytest.fixture(scope="module")
def begin(spoken: Spoken, circuit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    """`begin(**config)`: an engine with asynchronous scheduling, which is told a token when the next is under way."""
    folder = tmp_path_factory.mktemp("async")
    caches = {"VLLM_CACHE_ROOT": str(folder / "cache")}
    with Engine(folder / "log", caches, hook="async_scheduling") as engine:

        def start(**config: Any) -> Engine:
            engine.restart(**config_of(spoken.model, {}, **spoken.config(circuit), **config))
            return engine

        yield start


def test_asynchronous_scheduling(begin: Callable[..., Engine], oracle: Oracle, asks: list[Ask]) -> None:
    engine = begin(max_num_batched_tokens=32, num_gpu_blocks_override=8)
    check(engine, oracle, asks)
    assert engine.metric("vllm:num_preemptions") > 0
    assert "emovllm.engine.scheduler.EmotionAsyncScheduler" in engine.log()


def test_asynchronous_scheduling_with_drafts(
    begin: Callable[..., Engine], spoken: Spoken, oracle: Oracle, asks: list[Ask]
) -> None:
    # A schedule goes by the token's place, which the host does not know then: it is refused.
    asks = [ask for ask in asks if "emotion_schedule" not in ask.fields]
    draft = {"method": "draft_model", "model": spoken.model, "num_speculative_tokens": DRAFTS}
    engine = begin(speculative_config=draft, max_num_batched_tokens=64, num_gpu_blocks_override=14)
    check(engine, oracle, asks, 1 + DRAFTS)
    assert engine.metric("vllm:spec_decode_num_accepted_tokens") > 0
    assert engine.metric("vllm:num_preemptions") > 0


def test_phases_on_two_pipeline_stages(
    spoken: Spoken, circuit: Path, oracle: Oracle, asks: list[Ask], tmp_path: Path
) -> None:
    # Each stage goes by the tokens, which both are told.
    asks = [ask for ask in asks if "emotion_target" not in ask.fields]
    ranks = Series(tmp_path)
    try:
        engine = ranks.start(spoken.model, None, **spoken.config(circuit), pipeline_parallel_size=2)
        check(engine, oracle, asks)
    finally:
        ranks.close()


@pytest.fixture(scope="module")
def calmed(model: str, circuit: Path) -> Oracle:
    """With guards that act in some of the replies: above what half of the plain model's tokens read as."""
    oracle = Oracle(model, circuit)
    assert oracle.probe is not None
    replies = oracle.generate([Ask(ask.prompt, {"emotion_readout": "tokens"}) for ask in mixed_batch()], TOKENS)
    read = probabilities(np.array([reply.read for reply in replies], np.float32))
    for name, tokens in (("anger", 2), ("fear", 1)):
        bound = float(np.median(read[..., oracle.probe.labels.index(name)]))
        oracle.calms.append(Guard(name, round(bound, 4), tokens, "calm"))
    return oracle


def test_guards_calm_plain_and_steered_requests(
    runner: Series, model: str, circuit: Path, calmed: Oracle, asks: list[Ask]
) -> None:
    asks = [ask for ask in asks if not {"emotion_mute", "emotion_scope"} & ask.fields.keys()] + asks[8:10]
    guards = {KEY: {**settings(circuit), "guards": [str(guard) for guard in calmed.calms]}}
    tight = {"max_num_batched_tokens": 32, "num_gpu_blocks_override": 8, "additional_config": guards}
    engine = runner.start(model, None, **tight)
    check(engine, calmed, asks)
    assert engine.metric("vllm:num_preemptions") > 0
    free = Oracle(model, circuit).generate(asks, TOKENS)
    same = [a.tokens == b.tokens for a, b in zip(calmed.generate(asks, TOKENS), free, strict=True)]
    assert not all(same)


def test_guards_calm_with_drafts(runner: Series, model: str, circuit: Path, calmed: Oracle, asks: list[Ask]) -> None:
    ngram = {"method": "ngram", "num_speculative_tokens": DRAFTS, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    guards = {KEY: {**settings(circuit), "guards": [str(guard) for guard in calmed.calms]}}
    engine = runner.start(model, None, speculative_config=ngram, additional_config=guards)
    check(engine, calmed, asks[:8], 1 + DRAFTS)
