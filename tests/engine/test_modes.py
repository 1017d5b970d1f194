"""Modes of one engine, each with emotions and each equal to Hugging Face with hooks: speculative decoding, asynchronous
scheduling, vLLM's own compiler, several and sampled replies, structured output, reloaded weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from emovllm.emotion import first_position
from support.circuits import random_circuit
from support.engine import Ask, Engine, EngineError, assert_exact, assert_same
from support.models import tiny_model
from support.oracle import Oracle
from support.series import Series, reading, settings

pytestmark = pytest.mark.engine

SHAPE: dict[str, Any] = {"vocab_size": 256, "initializer_range": 0.3, "max_position_embeddings": 512}
TOKENS = 48


@dataclass
class Tiny:
    """A random model whose replies repeat themselves now and then, and a batch for it in all scopes."""

    model: str
    circuit: Path
    oracle: Oracle
    asks: list[Ask]

    def config(self, **changes: Any) -> dict[str, Any]:
        return {
            "model": self.model,
            "skip_tokenizer_init": True,
            "dtype": "float32",
            "max_model_len": 256,
            "block_size": 32,
            "seed": 0,
            "enforce_eager": True,
            "disable_log_stats": False,
            "additional_config": {"emovllm": {"circuit": str(self.circuit), "readout": True}},
            **changes,
        }

    def check(self, engine: Engine) -> None:
        assert_exact(engine, self.oracle, self.asks, TOKENS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    model = tiny_model(tmp_path_factory.mktemp("tiny"), **SHAPE)
    circuit = random_circuit(model, tmp_path_factory.mktemp("circuits") / "tiny", probe=True)
    fields: list[dict[str, Any]] = [
        {"emotion": "anger"},
        {"emotion": "sadness", "emotion_scope": "all"},
        {"emotion": "fear", "emotion_scope": "prompt_last", "emotion_strength": 2.0},
        {},
        {"emotion": {"anger": 0.7, "fear": -0.3}},
        {"emotion": "disgust", "emotion_strength": 0.5},
    ]
    random = np.random.default_rng(0)
    asks = []
    for asked in fields * 2:
        phrase = random.integers(2, SHAPE["vocab_size"], random.integers(4, 14)).tolist()
        asks.append(Ask((phrase * 25)[: random.integers(20, 100)], asked))
    return Tiny(model, circuit, Oracle(model, circuit), reading(asks))


@pytest.fixture(scope="module")
def begin(tiny: Tiny, series: Series) -> Callable[..., Engine]:
    """`begin(**changes)`: an engine in the mode of a test, in place of the one before."""
    return lambda **changes: series.start(circuit=tiny.circuit, **tiny.config(**changes))


def assert_some_drafts_accepted(engine: Engine) -> None:
    accepted = engine.metric("vllm:spec_decode_num_accepted_tokens")
    assert 0 < accepted < engine.metric("vllm:spec_decode_num_draft_tokens")


@pytest.mark.parametrize("caching", [False, True])
def test_ngram_drafts_in_chunks_and_after_preemption_equal_the_oracle(
    begin: Callable[..., Engine], tiny: Tiny, caching: bool
) -> None:
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    engine = begin(
        speculative_config=ngram,
        max_num_batched_tokens=64,
        max_num_seqs=8,
        num_gpu_blocks_override=14,
        enable_prefix_caching=caching,
    )
    tiny.check(engine)
    assert_some_drafts_accepted(engine)
    assert engine.metric("vllm:num_preemptions") > 0
    # With caching, much of each prompt and reply is now there.
    tiny.check(engine)


def test_prompts_that_end_at_different_tokens_of_a_block_do_not_share_it(
    begin: Callable[..., Engine], tiny: Tiny
) -> None:
    # The second prompt is the first with the beginning of its reply, and what follows is the same text: but the tokens
    # in between were injected in the first only. Preempted, the second request must not resume on the first's block.
    weak = {"emotion": "fear", "emotion_strength": 0.2}
    first = Ask(tiny.asks[0].prompt[:20] * 2, weak)
    (reply,) = tiny.oracle.generate([first], 56)
    second = Ask(first.prompt + reply.tokens[:10], weak)
    (expected,) = tiny.oracle.generate([second], 46)
    assert expected.tokens == reply.tokens[10:]
    assert expected.logprobs[-20:] != pytest.approx(reply.logprobs[-20:], abs=2e-3)

    engine = begin(max_model_len=128, num_gpu_blocks_override=5, enable_prefix_caching=True)
    replies = engine.generate([Ask(first.prompt, weak, {"max_tokens": 56}), second], 46)
    assert engine.metric("vllm:num_preemptions") > 0
    assert_same(replies, [reply, expected])


def test_drafts_of_an_unsteered_model_equal_the_oracle(begin: Callable[..., Engine], tiny: Tiny) -> None:
    # The draft model is the model itself, without emotion: right for plain requests, often wrong for the others.
    engine = begin(speculative_config={"method": "draft_model", "model": tiny.model, "num_speculative_tokens": 3})
    tiny.check(engine)
    assert_some_drafts_accepted(engine)


@pytest.fixture(scope="module")
def async_engine(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("async")
    with Engine(
        folder / "log", {"VLLM_CACHE_ROOT": str(folder / "cache")}, hook="async_scheduling", **tiny.config()
    ) as engine:
        assert "emovllm.engine.scheduler.EmotionAsyncScheduler" in (folder / "log").read_text()
        yield engine


def test_asynchronous_scheduling_equals_the_oracle(async_engine: Engine, tiny: Tiny) -> None:
    tiny.check(async_engine)


def test_asynchronous_scheduling_with_drafts_in_chunks_and_after_preemption_equals_the_oracle(
    async_engine: Engine, tiny: Tiny
) -> None:
    async_engine.restart(
        **tiny.config(
            speculative_config={"method": "draft_model", "model": tiny.model, "num_speculative_tokens": 3},
            max_num_batched_tokens=64,
            max_num_seqs=8,
            num_gpu_blocks_override=14,
        )
    )
    tiny.check(async_engine)
    assert_some_drafts_accepted(async_engine)
    assert async_engine.metric("vllm:num_preemptions") > 0


def test_reloaded_weights_are_steered_by_their_own_fold(
    begin: Callable[..., Engine], tiny: Tiny, tmp_path: Path
) -> None:
    engine = begin()
    before = engine.vectors()
    engine.call("collective_rpc", "reload_weights")
    assert engine.vectors() == before
    tiny.check(engine)

    # The same model after some further training, within the fingerprint's tolerance.
    trained = LlamaForCausalLM.from_pretrained(tiny.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "norm" not in name:
                weight += torch.randn_like(weight) * weight.std() * 0.01
    trained.save_pretrained(tmp_path / "trained")
    engine.call("collective_rpc", "reload_weights", kwargs={"weights_path": str(tmp_path / "trained")})
    engine.call("reset_prefix_cache")
    after = engine.vectors()
    assert all(after[site] != before[site] for site in before)
    oracle = Oracle(str(tmp_path / "trained"), tiny.circuit)
    assert_exact(engine, oracle, tiny.asks, TOKENS)


def test_weights_of_another_model_are_not_reloaded(begin: Callable[..., Engine], tiny: Tiny, tmp_path: Path) -> None:
    engine = begin()
    stranger = tiny_model(tmp_path, seed=1, **SHAPE)
    with pytest.raises(EngineError, match="weights served here are not that model's"):
        engine.call("collective_rpc", "reload_weights", kwargs={"weights_path": stranger})
    # They are loaded all the same: nothing is steered with a circuit that is not theirs.
    engine.generate([Ask([5, 6, 7])], 1)
    with pytest.raises(EngineError, match="weights served here are not that model's"):
        engine.generate([Ask([5, 6, 7], {"emotion": "anger"})], 1)


def test_what_reloaded_weights_write_is_not_read_by_another_models_probe(
    begin: Callable[..., Engine], tiny: Tiny, tmp_path: Path
) -> None:
    engine = begin()
    stranger = tiny_model(tmp_path, seed=1, **SHAPE)
    with pytest.raises(EngineError, match="weights served here are not that model's"):
        engine.call("collective_rpc", "reload_weights", kwargs={"weights_path": stranger})
    with pytest.raises(EngineError, match=r"the probe was made for .* not that model's"):
        engine.generate([Ask([5, 6, 7], {"emotion_readout": "reply"})], 1)


def test_vllms_own_compiler_equals_the_oracle_and_loads_what_it_compiled_ahead_of_time(
    tiny: Tiny, tmp_path: Path
) -> None:
    other = random_circuit(tiny.model, tmp_path / "other", seed=1, probe=True)
    environment = {"VLLM_CACHE_ROOT": str(tmp_path / "cache"), "VLLM_USE_AOT_COMPILE": "1"}

    def loads(circuit: Path | None) -> bool:
        """Whether an engine, in a process of its own, loads its graph rather than saves one."""
        config = tiny.config(enforce_eager=False, additional_config={"emovllm": settings(circuit)} if circuit else {})
        asks = tiny.asks if circuit else [Ask(ask.prompt) for ask in tiny.asks]
        oracle = Oracle(tiny.model, other) if circuit == other else tiny.oracle
        with Engine(tmp_path / "log", environment, hook="piecewise", **config) as engine:
            assert_exact(engine, oracle, asks, TOKENS)
            loaded, saved = (text in engine.log() for text in ("Directly load AOT compilation", "saved AOT compiled"))
        assert loaded != saved
        return loaded

    # With one cache: the steered engine must not load the plain one's graph, and another circuit at the same sites
    # starts with that of the first.
    assert [loads(circuit) for circuit in (None, tiny.circuit, other)] == [False, False, True]


def test_several_replies_equal_the_oracle(
    steered_eager: Engine, oracle: Oracle, text_of: Callable[[int, int], list[int]]
) -> None:
    # vLLM refuses n > 1 at temperature 0; of one candidate, all samples are alike.
    several = {"n": 3, "temperature": 1.0, "top_k": 1}
    fields: list[dict[str, Any]] = [{}, {"emotion": "anger"}]
    asks = reading([Ask(text_of(seed, 20 + seed), fields[seed % 2], several) for seed in range(4)])
    expected = oracle.generate([Ask(ask.prompt, ask.fields) for ask in asks], 16)
    for reply, wanted in zip(steered_eager.generate(asks, 16), expected, strict=True):
        assert_same([reply, *reply.others], [wanted] * 3)


def test_sampled_replies_have_the_oracles_probabilities(
    steered_eager: Engine, oracle: Oracle, text_of: Callable[[int, int], list[int]]
) -> None:
    sampled = {"n": 3, "temperature": 0.8, "seed": 7}
    prompt = text_of(3, 40)
    ask = Ask(prompt, {"emotion": {"anger": 0.6, "fear": 0.4}}, sampled)
    steered, plain = steered_eager.generate([ask, Ask(prompt, {}, sampled)], 16)
    (again,) = steered_eager.generate([ask], 16)
    replies = [steered, *steered.others]
    assert [reply.tokens for reply in [again, *again.others]] == [reply.tokens for reply in replies]
    assert len({tuple(reply.tokens) for reply in [*replies, plain, *plain.others]}) == 6
    for reply in replies:
        scores = oracle.scores(ask, reply.tokens)[len(prompt) - 1 : -1]
        expected = scores[range(16), reply.tokens]
        assert reply.logprobs == pytest.approx(expected.tolist(), abs=1e-3)


def test_alternatives_equal_the_oracles(
    steered_eager: Engine, oracle: Oracle, text_of: Callable[[int, int], list[int]]
) -> None:
    ask = Ask(text_of(5, 50), {"emotion": "happiness", "emotion_strength": 1.5}, {"logprobs": 5})
    (reply,) = steered_eager.generate([ask], 8)
    best = oracle.scores(ask, reply.tokens)[len(ask.prompt) - 1 : -1].topk(5)
    assert [[int(token) for token, _ in top] for top in reply.top] == best.indices.tolist()
    for top, expected in zip(reply.top, best.values.tolist(), strict=True):
        assert [logprob for _, logprob in top] == pytest.approx(expected, abs=1e-3)


def test_prompt_logprobs_equal_the_oracles(
    steered_eager: Engine, oracle: Oracle, text_of: Callable[[int, int], list[int]]
) -> None:
    prompt = text_of(6, 45)
    asks = [Ask(prompt, asked, {"prompt_logprobs": 0}) for asked in ({}, {"emotion": "anger", "emotion_scope": "all"})]
    (plain,), (everywhere,) = (steered_eager.generate([ask], 4) for ask in asks)
    expected = oracle.scores(asks[1], [])[:-1][range(len(prompt) - 1), prompt[1:]]
    assert everywhere.prompt_logprobs == pytest.approx(expected.tolist(), abs=1e-3)
    assert everywhere.prompt_logprobs != pytest.approx(plain.prompt_logprobs, abs=0.1)


CONTINUED: list[dict[str, Any]] = [
    {"emotion": "anger"},
    {"emotion": {"fear": 0.8, "anger": -0.4}, "emotion_strength": 1.5},
    {"emotion": "sadness", "emotion_scope": "prompt_last", "emotion_strength": 2.0},
    {"emotion": "fear", "emotion_scope": "prompt_tail:4"},
    {"emotion": "anger", "emotion_schedule": {"hold": 3, "half_life": 2}},
    {"emotion": "disgust", "emotion_schedule": [[0, 0.2], [12, 1], [30, 0.4]]},
]


def assert_continuations_are_scored(
    engine: Engine, oracle: Oracle, prompts: list[list[int]], starts: list[int], tokens: int
) -> None:
    """As the oracle scores them as a reply to what stands before; and what is written then goes on from them."""
    scored = {"prompt_logprobs": 0}
    asks = [
        Ask(prompt, {**fields, "emotion_from": start}, scored)
        for prompt, start, fields in zip(prompts, starts, CONTINUED, strict=True)
    ]
    replies = engine.generate(asks, tokens)
    for number, (ask, reply) in enumerate(zip(asks, replies, strict=True)):
        start = ask.fields["emotion_from"] % len(ask.prompt)
        context = Ask(ask.prompt[:start], CONTINUED[number])
        rest = [*ask.prompt[start:], *reply.tokens]
        expected = oracle.scores(context, rest)
        known = expected[range(len(ask.prompt) - 1), ask.prompt[1:]]
        assert reply.prompt_logprobs == pytest.approx(known.tolist(), abs=1e-3), f"request {number}"
        written = expected[len(ask.prompt) - 1 : -1]
        assert reply.tokens == written.argmax(-1).tolist(), f"request {number}"
        assert reply.logprobs == pytest.approx(written.max(-1).values.tolist(), abs=1e-3), f"request {number}"
        plain = oracle.scores(Ask(ask.prompt), [])[range(len(ask.prompt) - 1), ask.prompt[1:]]
        # The first position that is injected, and so the first whose score of the next token changes.
        first = first_position(ask.fields.get("emotion_scope", "generation"), start)
        assert reply.prompt_logprobs[:first] == pytest.approx(plain[:first].tolist(), abs=1e-3)
        assert reply.prompt_logprobs[first:] != pytest.approx(plain[first:].tolist(), abs=0.01)


def test_a_continuation_is_scored_as_the_oracle_scores_a_reply(
    steered_eager: Engine, oracle: Oracle, text_of: Callable[[int, int], list[int]]
) -> None:
    lengths = [45, 64, 33, 97, 150, 80]
    starts = [20, 32, -7, 64, -100, 1]
    prompts = [text_of(number, length) for number, length in enumerate(lengths)]
    assert_continuations_are_scored(steered_eager, oracle, prompts, starts, 8)
    # Cached blocks of others' prompts and replies are not theirs.
    assert_continuations_are_scored(steered_eager, oracle, prompts, [start - 1 or 2 for start in starts], 8)


def test_continuations_in_chunks_and_after_preemption_are_scored_as_the_oracle_scores_them(
    begin: Callable[..., Engine], tiny: Tiny
) -> None:
    engine = begin(max_num_batched_tokens=24, max_num_seqs=6, num_gpu_blocks_override=11, enable_prefix_caching=True)
    prompts = [ask.prompt[:40] + ask.prompt for ask in tiny.asks[: len(CONTINUED)]]
    for starts in ([20, 32, -7, 30, -25, 1], [31, 33, -1, 32, -8, 9]):
        assert_continuations_are_scored(engine, tiny.oracle, prompts, starts, 40)
    assert engine.metric("vllm:num_preemptions") > 0


@pytest.mark.parametrize(
    ("fields", "params", "message"),
    [
        (
            {"emotion": "anger", "emotion_from": 41},
            {},
            "which has 40 tokens: it may be from 1 to 40, or from -39 to -1",
        ),
        ({"emotion": "anger", "emotion_from": -40}, {}, "emotion_from -40 is not within the prompt"),
        ({"emotion": "anger", "emotion_strength": 0, "emotion_from": 41}, {}, "which has 40 tokens"),
        ({"emotion": "anger"}, {"prompt_logprobs": 0}, "would be the plain model's, .* give emotion_from"),
        ({"emotion": "anger", "emotion_prompt": True}, {}, "emotion_prompt is of chats .* 'You are an extremely angry"),
    ],
)
def test_what_cannot_be_scored_or_said_is_refused(
    steered_eager: Engine, fields: dict[str, Any], params: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        steered_eager.generate([Ask(list(range(100, 140)), fields, params)], 4)
    assert steered_eager.generate([Ask([5, 6, 7])], 1)


MOOD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["calm", "angry", "happy", "sad", "afraid"]},
        "degree": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["mood", "degree"],
    "additionalProperties": False,
}


def test_structured_output_equals_the_oracle(steered_eager: Engine, oracle: Oracle, default_model: str) -> None:
    import xgrammar

    tokenizer = AutoTokenizer.from_pretrained(default_model)
    vocabulary = oracle.circuit.spec.model.vocab_size
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary))
    grammar = compiler.compile_json_schema(json.dumps(MOOD))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Someone broke my window. Write my mood as JSON."}],
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    params = {"structured_outputs": {"json": MOOD}, "ignore_eos": False}
    fields: list[dict[str, Any]] = [
        {"emotion": "anger", "emotion_strength": 0.5},
        {},
        {"emotion": "happiness", "emotion_strength": 0.3},
        {"emotion": "fear", "emotion_scope": "all", "emotion_strength": 0.5},
    ]
    asks = [Ask(prompt, asked, params) for asked in fields]
    replies = steered_eager.generate(asks, 64)
    for ask, reply in zip(asks, replies, strict=True):
        matcher = xgrammar.GrammarMatcher(grammar)
        mask = xgrammar.allocate_token_bitmask(1, vocabulary)

        def allowed(tokens: list[int], logits: torch.Tensor, matcher: Any = matcher, mask: Any = mask) -> torch.Tensor:
            assert not tokens or matcher.accept_token(tokens[-1])
            matcher.fill_next_token_bitmask(mask)
            xgrammar.apply_token_bitmask_inplace(logits, mask[0])
            return logits

        assert reply.tokens == oracle.decode(ask, 64, allowed, tokenizer.eos_token_id)
    assert len({tuple(reply.tokens) for reply in replies}) > 1
    # The grammar lets a reply go on with white space for ever, and this small model sometimes does.
    finished = [reply.tokens for reply in replies if reply.tokens[-1] == tokenizer.eos_token_id]
    assert finished
    for tokens in finished:
        written = json.loads(tokenizer.decode(tokens, skip_special_tokens=True))
        assert set(written) == set(MOOD["required"])
        assert written["mood"] in MOOD["properties"]["mood"]["enum"]


def test_beam_searchs_parameters_can_name_no_emotion() -> None:
    # Its later steps are new requests whose prompts hold generated tokens.
    from vllm.sampling_params import BeamSearchParams

    with pytest.raises(TypeError, match="extra_args"):
        BeamSearchParams(beam_width=2, max_tokens=4, extra_args={"emotion": "anger"})
