"""Engines of several processes against Hugging Face with hooks: tensor, pipeline and data parallelism.

The models are tiny and random.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from emovllm.circuit import Circuit, Components
from emovllm.circuit_files import load_circuit, save_circuit
from emovllm.probe import load_probe, save_probe
from support.circuits import SIX, random_circuit
from support.engine import Ask, AsyncEngine, Engine, EngineError, assert_exact, assert_same
from support.families import family_model
from support.models import tiny_model
from support.oracle import Oracle
from support.series import Series, reading

pytestmark = pytest.mark.engine

MAX_TOKENS = 24
# Prompts of up to 60 tokens and replies of 24: three blocks.
BLOCK = 32


@pytest.fixture(scope="module")
def split_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Each of two ranks has a KV head of its own. Weights are wide apart, so that greedy tokens have no ties."""
    return tiny_model(
        tmp_path_factory.mktemp("split"),
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )


@pytest.fixture(scope="module")
def replicated_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One KV head, which both ranks hold."""
    return tiny_model(tmp_path_factory.mktemp("replicated"), num_hidden_layers=4, initializer_range=0.2)


@pytest.fixture(scope="module")
def circuit(split_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_circuit(split_model, tmp_path_factory.mktemp("circuits") / "whole", probe=True)


@pytest.fixture(scope="module")
def oracle(split_model: str, circuit: Path) -> Oracle:
    return Oracle(split_model, circuit)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Series]:
    """Not the process of engines without ranks: it would come to vLLM's kernels after Numba, which vLLM cannot bear."""
    series = Series(tmp_path_factory.mktemp("ranks"))
    yield series
    series.close()


@pytest.fixture(scope="module")
def mixed() -> list[Ask]:
    """The mixed batch: six emotions, blends, negative strength, none, all scopes, 5 to 60 tokens."""
    fields: list[dict[str, Any]] = [
        *({"emotion": name} for name in SIX),
        {"emotion": {"anger": 0.7, "fear": 0.3}},
        {"emotion": {"happiness": 1.0, "surprise": -0.5}, "emotion_strength": 1.5},
        {"emotion": "anger", "emotion_strength": -1.0},
        {},
        {"emotion": "sadness", "emotion_scope": "prompt_last", "emotion_strength": 2.0},
        {"emotion": "disgust", "emotion_scope": "all"},
    ]
    lengths = [5, 17, 33, 60, 32, 31, 41, 9, 58, 50, 24, 47]
    random = np.random.default_rng(1)
    asks = [Ask(random.integers(2, 128, length).tolist(), asked) for length, asked in zip(lengths, fields, strict=True)]
    return reading(asks)


def of_second_rank(whole: Path, model: str, out: Path) -> Path:
    """A circuit's units in the second half of each layer, fingerprinted anew."""
    circuit = load_circuit(whole)
    weights = load_file(Path(model) / "model.safetensors")

    def weight_of(kind: str, layer: int) -> np.ndarray:
        name = {"attn": "self_attn.o_proj", "mlp": "mlp.down_proj"}[kind]
        return weights[f"model.layers.{layer}.{name}.weight"].numpy()

    def kept(units: Components, count: int) -> Components:
        chosen = units.index >= count // 2
        assert 0 < chosen.sum() < len(units)
        return Components(units.layer[chosen], units.index[chosen], units.delta[chosen])

    spec = circuit.spec
    neurons = {name: kept(units, spec.model.intermediate_size) for name, units in circuit.neurons.items()}
    heads = {name: kept(units, spec.model.num_attention_heads) for name, units in circuit.heads.items()}
    save_circuit(Circuit.fingerprinted(spec, neurons, heads, weight_of, circuit.directions), out)
    return out


def test_the_circuit_moves_every_request_and_has_units_on_both_ranks(
    oracle: Oracle, mixed: list[Ask], circuit: Path
) -> None:
    plain = oracle.generate([Ask(ask.prompt) for ask in mixed], MAX_TOKENS)
    for ask, steered, unsteered in zip(mixed, oracle.generate(mixed, MAX_TOKENS), plain, strict=True):
        same = steered.logprobs == pytest.approx(unsteered.logprobs, abs=0.02)
        assert same != ("emotion" in ask.fields), ask.fields
    whole = load_circuit(circuit)
    for site in whole.sites():
        first, second = np.split(whole.site_delta(*site), 2, axis=1)
        assert first.any(), site
        assert second.any(), site


def test_two_tensor_parallel_ranks_equal_the_oracle_also_chunked_preempted_and_speculating(
    split_model: str, circuit: Path, oracle: Oracle, mixed: list[Ask], ranks: Series
) -> None:
    config = {
        "speculative_config": {
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_max": 2,
            "prompt_lookup_min": 1,
        },
        "max_num_batched_tokens": 24,
        "num_gpu_blocks_override": 12,
        "enable_prefix_caching": False,
    }
    engine = ranks.start(split_model, circuit, tensor_parallel_size=2, **config)
    # Each rank follows what it reads itself.
    targets = [Ask(ask.prompt, {"emotion": "fear", "emotion_target": {"level": 0.9, "rate": 2}}) for ask in mixed[:4]]
    asks = [*mixed, *targets]
    replies = engine.generate(asks, MAX_TOKENS)
    assert engine.metric("vllm:num_preemptions") > 0
    assert engine.metric("vllm:spec_decode_num_accepted_tokens") > 0
    assert_same(replies, oracle.generate(asks, MAX_TOKENS, replies, span=4))


def test_ranks_that_share_a_kv_head_and_hold_units_on_one_of_them_equal_the_oracle_compiled_and_by_both_methods(
    replicated_model: str, mixed: list[Ask], ranks: Series, tmp_path: Path
) -> None:
    whole = random_circuit(replicated_model, tmp_path / "whole", directions=True, probe=True)
    second = of_second_rank(whole, replicated_model, tmp_path / "second")
    # The steering baseline is added on each rank alone, for it is no part of what ranks sum.
    steered = [
        Ask(ask.prompt, {**ask.fields, "emotion_method": "steering"}) for ask in mixed if "emotion" in ask.fields
    ]
    # Compiled by Dynamo alone, which is quick.
    env = {"VLLM_CPU_CI_ENV": "1"}
    save_probe(load_probe(whole), second)
    config = {"additional_config": {"emovllm": {"circuit": str(second), "steering": True, "readout": True}}}
    engine = ranks.start(replicated_model, second, env, tensor_parallel_size=2, enforce_eager=False, **config)
    replies = engine.generate([*mixed, *steered], MAX_TOKENS)
    expected = Oracle(replicated_model, second).generate([*mixed, *steered], MAX_TOKENS)
    by_circuit = [reply for ask, reply in zip(mixed, expected, strict=False) if "emotion" in ask.fields]
    assert (
        sum(a.tokens != b.tokens for a, b in zip(by_circuit, expected[len(mixed) :], strict=True)) >= len(steered) - 4
    )
    assert_same(replies, expected)


def test_each_of_two_ranks_adds_the_vectors_of_experts_whole_and_its_share_of_the_shared_experts(
    mixed: list[Ask], ranks: Series, tmp_path: Path
) -> None:
    # A layer of its own, and one with routed experts and one that all tokens share.
    model = family_model("glm4_moe", tmp_path / "model")
    circuit = random_circuit(model, tmp_path / "circuit", scale=1.0, experts=0.5, probe=True)
    oracle = Oracle(model, circuit)
    assert oracle.circuit.sites()[-3:] == [("attn", 1), ("experts", 1), ("mlp", 1)]
    engine = ranks.start(model, circuit, tensor_parallel_size=2)
    assert_exact(engine, oracle, mixed, MAX_TOKENS)


def test_two_pipeline_stages_equal_the_oracle(
    split_model: str, circuit: Path, oracle: Oracle, mixed: list[Ask], ranks: Series
) -> None:
    config = {"pipeline_parallel_size": 2, "max_num_batched_tokens": 48}
    # What is read in the first stage goes to the second with what that one works on.
    for layer in (0, 2):
        settings = {"circuit": str(circuit), "readout": True, "readout_layer": layer}
        engine = ranks.start(split_model, circuit, additional_config={"emovllm": settings}, **config)
        replies = engine.generate(mixed, MAX_TOKENS)
        assert_same(replies, oracle.generate(mixed, MAX_TOKENS, replies, layer))
    with pytest.raises(EngineError, match="with pipeline parallelism a stage does not know"):
        engine.generate([Ask([3, 4, 5], {"emotion": "fear", "emotion_target": 0.9})], 1)


@pytest.fixture(scope="module")
def two_engines(split_model: str, circuit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Two engines behind one front end, as `--data-parallel-size 2` starts them. As on a GPU, each runs its one worker
    in its own process, which spares two more."""
    folder = tmp_path_factory.mktemp("engines")
    with AsyncEngine(
        folder / "log",
        {"VLLM_CACHE_ROOT": str(folder / "cache")},
        model=split_model,
        skip_tokenizer_init=True,
        disable_log_stats=False,
        dtype="float32",
        max_model_len=128,
        block_size=BLOCK,
        enforce_eager=True,
        additional_config={"emovllm": {"circuit": str(circuit), "readout": True}},
        data_parallel_size=2,
        distributed_executor_backend="uni",
    ) as engine:
        yield engine


def prompt_tokens(engine: Engine) -> list[float]:
    """What each of two engines has read so far."""
    # A request, so that the counters were read since the last one.
    engine.generate([Ask([2], params={"data_parallel_rank": rank}) for rank in (0, 1)], 1)
    return [engine.metric(f"vllm:prompt_tokens/{rank}") for rank in (0, 1)]


@pytest.mark.parametrize("rank", [0, 1])
def test_each_of_two_engines_behind_one_front_end_equals_the_oracle(
    two_engines: Engine, oracle: Oracle, mixed: list[Ask], rank: int
) -> None:
    before = prompt_tokens(two_engines)
    asks = [Ask(ask.prompt, ask.fields, {"data_parallel_rank": rank}) for ask in mixed]
    replies = two_engines.generate(asks, MAX_TOKENS)
    read = [after - then for after, then in zip(prompt_tokens(two_engines), before, strict=True)]
    assert read[rank] >= sum(len(ask.prompt) for ask in mixed)
    assert read[1 - rank] < 4
    assert_same(replies, oracle.generate(mixed, MAX_TOKENS, replies))


def test_requests_on_both_engines_at_once_equal_the_oracle(
    two_engines: Engine, oracle: Oracle, mixed: list[Ask]
) -> None:
    before = prompt_tokens(two_engines)
    asks = [Ask(ask.prompt, ask.fields, {"data_parallel_rank": number % 2}) for number, ask in enumerate(mixed)]
    replies = two_engines.generate(asks, MAX_TOKENS)
    assert all(after - then > 4 for after, then in zip(prompt_tokens(two_engines), before, strict=True))
    assert_same(replies, oracle.generate(mixed, MAX_TOKENS, replies))


def test_requests_that_the_front_end_spreads_equal_the_oracle(
    two_engines: Engine, oracle: Oracle, mixed: list[Ask]
) -> None:
    # By the engines' load as it last heard of it: where they go differs from run to run.
    assert_exact(two_engines, oracle, mixed, MAX_TOKENS)


@pytest.mark.parametrize(
    "fields",
    [{}, {"emotion": "anger"}]
    + [{"emotion": "sadness", "emotion_strength": 2, "emotion_scope": scope} for scope in ("all", "prompt_last")],
)
def test_beams_equal_the_oracles(two_engines: AsyncEngine, oracle: Oracle, mixed: list[Ask], fields: Any) -> None:
    # Each step of a beam is a request of its own, to either engine, whose prompt holds what was generated.
    ask, width, tokens = Ask(mixed[5].prompt[:30], fields), 3, 12
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    for _ in range(tokens):
        longer = [
            ([*reply, int(token)], total + float(score))
            for reply, total in beams
            for score, token in zip(*oracle.scores(ask, reply)[-1].topk(2 * width), strict=True)
        ]
        beams = sorted(longer, key=lambda beam: -beam[1])[:width]
    found = two_engines.beams(ask, width, tokens)
    assert [reply for reply, _ in found] == [reply for reply, _ in beams]
    assert [total for _, total in found] == pytest.approx([total for _, total in beams], abs=1e-3)
