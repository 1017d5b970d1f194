"""A tiny model of each family equals Hugging Face with hooks; what has no such sites is refused."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from emovllm.architectures import FAMILIES
from emovllm.emotion import KEY
from support.circuits import random_circuit
from support.engine import Ask, Engine, EngineError, assert_same
from support.families import WRAPPERS, family_model, family_network, wrapper_network
from support.oracle import Oracle
from support.pictures import PICTURES
from support.series import Series, mixed_batch, reading, unsteered
from support.walk import Walk

pytestmark = pytest.mark.engine

# Every layer has experts: circuits are of heads, and of vectors at the experts' output.
EXPERTS = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss")
HYBRID = ("granitemoehybrid", "falcon_h1", "nemotron_h")
TOKENS = 12
# Compiled by Dynamo alone, which is quick.
DYNAMO = {"VLLM_CPU_CI_ENV": "1"}


class Tolerance(NamedTuple):
    """Of log-probabilities, and of the logits of what is read."""

    logprobs: float = 1e-3
    read: float = 1e-4


# vLLM's CPU attention approximates the soft cap's tanh: unsteered log-probabilities are 0.004 apart. Its xIELU, which
# Apertus has, keeps its parameters in bfloat16. Unsteered log-probabilities of Nemotron are 0.003 apart.
TOLERANCE = {"gemma2": Tolerance(0.01, 0.01), "apertus": Tolerance(0.01, 0.01), "nemotron_h": Tolerance(0.01, 0.01)}
# Unsteered, vLLM's states of Bloom are read 0.004 apart from Hugging Face's, of logits up to 15.
TOLERANCE["bloom"] = Tolerance(read=0.01)
# Those whose circuits are made by the command too, each unlike the others: experts; an expert that all tokens share;
# other names in vLLM; layers with a state; norms by another name; norms of what sublayers write; parallel sublayers;
# layers without positions. vLLM has no class of its own for the last two.
DISCOVERED = ("qwen3_moe", "glm4_moe", "gpt_oss", "granitemoehybrid", "apertus", "glm4", "gpt_neox", "smollm3")
# One of each way in which they differ to a runner: experts, norms of what sublayers write, parallel sublayers, a state.
V2 = ("glm4_moe", "olmo2", "gpt_neox", "granitemoehybrid")
# Models of text and images, asked about text alone.
WRAPPED = ("gemma3", "mistral3")
STRONGEST = 2.0


def strong_circuit(family: str, model: str, folder: Path) -> Path:
    """A random circuit of a tiny model with all that it has, experts included."""
    return random_circuit(model, folder, neurons=0 if family in EXPERTS else 8, scale=1.0, experts=0.5, probe=True)


def start(series: Series, family: str, model: str, circuits: dict[str, Path]) -> Engine:
    named = {name: str(folder) for name, folder in circuits.items()}
    settings = {KEY: {"circuit": named, "readout": True}}
    if family in WRAPPERS:
        return series.start(model, None, {PICTURES: "1"}, language_model_only=True, additional_config=settings)
    # With prefix caching, vLLM fails on a CPU at prompts of Mamba models that end behind a block, without emovllm too.
    return series.start(model, None, additional_config=settings, enable_prefix_caching=family not in HYBRID)


def discovered_batch() -> list[Ask]:
    fields = [
        {"emotion": "anger", "emotion_strength": STRONGEST},
        {"emotion": {"anger": 1.0, "fear": -1.0}},
        {"emotion": "fear", "emotion_scope": "all"},
    ]
    return [Ask(ask.prompt, asked) for ask, asked in zip(mixed_batch(), fields, strict=False)]


def of_circuit(name: str, ask: Ask) -> Ask:
    """The same request to an engine that has several circuits."""
    emotion = ask.fields.get("emotion")
    if emotion is None:
        return ask
    weights = emotion if isinstance(emotion, dict) else {emotion: 1.0}
    return Ask(ask.prompt, {**ask.fields, "emotion": {f"{name}/{one}": weight for one, weight in weights.items()}})


def assert_equal(engine: Engine, oracle: Oracle, name: str, asks: list[Ask], tolerance: Tolerance) -> None:
    replies = engine.generate([of_circuit(name, ask) for ask in asks], TOKENS)
    for reply, right in zip(replies, oracle.generate(asks, TOKENS), strict=True):
        assert reply.tokens == right.tokens, name
        assert reply.logprobs == pytest.approx(right.logprobs, abs=tolerance.logprobs), name
        np.testing.assert_allclose(reply.read, right.read, rtol=0, atol=tolerance.read, err_msg=name)


@pytest.mark.parametrize("family", [*(row.model_type for row in FAMILIES if row.served == "tests"), *WRAPPED])
def test_a_mixed_batch_equals_the_oracle(series: Series, tmp_path: Path, family: str) -> None:
    walk = Walk(tmp_path, wrapper_network(family) if family in WRAPPERS else family_network(family))
    circuits = {"random": tmp_path / "random"}
    strong_circuit(family, walk.model, circuits["random"])
    asks, oracle = reading(mixed_batch()), Oracle(walk.model, circuits["random"])
    expected = oracle.generate(asks, TOKENS)
    plain = oracle.generate(unsteered(asks), TOKENS)
    # The circuit is felt, and the replies do not repeat one token, which a wrong engine might as well.
    assert sum(a.tokens != b.tokens for a, b in zip(plain, expected, strict=True)) >= len(asks) - 4
    assert sum(len(set(reply.tokens)) for reply in expected) >= 3 * len(asks)
    assert sum(len(reply.read) for reply in expected) == TOKENS * sum("emotion_readout" in ask.fields for ask in asks)

    by_command = family in (*DISCOVERED, *WRAPPED)
    if by_command:
        circuits["discovered"] = tmp_path / "discovered"
        assert walk.discover(circuits["discovered"]) == 0
    engine = start(series, family, walk.model, circuits)
    tolerance = TOLERANCE.get(family, Tolerance())
    assert_equal(engine, oracle, "random", asks, tolerance)
    if by_command:
        oracle, asks = Oracle(walk.model, circuits["discovered"]), discovered_batch()
        felt = zip(oracle.generate(asks, TOKENS), oracle.generate(unsteered(asks), TOKENS), strict=True)
        assert all(a.logprobs != pytest.approx(b.logprobs, abs=10 * tolerance.logprobs) for a, b in felt)
        assert_equal(engine, oracle, "discovered", asks, tolerance)


def test_states_are_shared_by_requests_that_were_injected_alike_alone(series: Series, tmp_path: Path) -> None:
    # What is added behind the first layer's Mamba is in the states of the third's.
    model = str(tmp_path / "model")
    family_network("granitemoehybrid", num_hidden_layers=4).save_pretrained(model)
    circuit = random_circuit(model, tmp_path / "circuit", scale=1.0)
    oracle, block = Oracle(model, circuit), 64
    prompt = [3 + (7 * i) % 125 for i in range(100)]
    emotions: list[dict[str, str]] = [{"emotion": "anger"}, {"emotion": "fear"}, {}, {"emotion": "anger"}]
    asks = [Ask(prompt, each) for each in emotions]
    asks += [Ask(prompt, {**each, "emotion_scope": "all"}) for each in emotions if each]
    # Further turns: a block ends in the reply of the first, which is in the prompts of the others.
    first = Ask(prompt[: block - 6], emotions[0])
    text = first.prompt + oracle.generate([first], TOKENS)[0].tokens
    asks += [first, *(Ask(text + prompt[:20], each) for each in emotions)]
    expected = oracle.generate(asks, TOKENS)
    assert len({tuple(reply.tokens) for reply in expected}) == 9
    # Prompts in chunks of a block, within which vLLM has no states to keep on a CPU.
    engine = series.start(model, circuit, enable_prefix_caching=True, max_num_batched_tokens=block)
    # One after another, so that each finds the blocks of those before.
    replies = [reply for ask in asks for reply in engine.generate([ask], TOKENS)]
    assert_same(replies, expected)
    # Of the replies' emotions alone, all but the first prompt; of those in scope `all` the one that is repeated; and of
    # the further turns, none finds the block that ends in the injected reply, but all but the first find the new one.
    assert engine.metric("vllm:prefix_cache_hits") == (3 + 1 + 3) * block


def test_a_circuit_without_units_in_mamba_layers_is_served_as_it_was(series: Series, tmp_path: Path) -> None:
    model = family_model("granitemoehybrid", tmp_path / "model")
    circuit = random_circuit(model, tmp_path / "circuit", scale=1.0, mixers=False)
    asks = mixed_batch()
    engine = series.start(model, circuit, enable_prefix_caching=False)
    assert_same(engine.generate(asks, TOKENS), Oracle(model, circuit).generate(asks, TOKENS))


@pytest.mark.xdist_group("V2")
@pytest.mark.parametrize("family", V2)
def test_a_batch_on_the_v2_runner_equals_the_oracle(series_v2: Series, tmp_path: Path, family: str) -> None:
    model = family_model(family, tmp_path / family)
    circuit = strong_circuit(family, model, tmp_path / "circuit")
    asks = reading(mixed_batch()[::2])
    engine = start(series_v2, family, model, {"random": circuit})
    assert "Using V2 Model Runner" in engine.log()
    assert_same(engine.generate(asks, TOKENS), Oracle(model, circuit).generate(asks, TOKENS))


@pytest.mark.parametrize("family", EXPERTS[:2])
def test_experts_in_a_compiled_model_equal_the_oracle(series: Series, tmp_path: Path, family: str) -> None:
    model = family_model(family, tmp_path / family)
    circuit = strong_circuit(family, model, tmp_path / "circuit")
    asks, oracle = reading(mixed_batch()), Oracle(model, circuit)
    assert {site for site, _ in oracle.circuit.sites()} == {"attn", "experts"}
    assert_same(
        series.start(model, circuit, DYNAMO, enforce_eager=False).generate(asks, TOKENS), oracle.generate(asks, TOKENS)
    )


@pytest.mark.parametrize("family", EXPERTS[:2])
def test_a_circuit_with_neurons_that_the_model_has_no_layer_for_is_refused(
    series: Series, tmp_path: Path, family: str
) -> None:
    model = family_model(family, tmp_path / family)
    with pytest.raises(EngineError) as caught:
        series.start(model, random_circuit(model, tmp_path / "circuit"))
    assert "no layer to steer for 2 of the circuit's 4 sites (mlp.0, mlp.1): layers of experts" in str(caught.value)
