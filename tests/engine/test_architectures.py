"""A tiny model of each family equals Hugging Face with hooks; what has no such sites is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from emovllm.architectures import FAMILIES
from support.circuits import random_circuit
from support.engine import EngineError, assert_same
from support.families import family_model
from support.oracle import Oracle
from support.series import Series, mixed_batch, unsteered

pytestmark = pytest.mark.engine

# Every layer has experts: circuits are of heads, and of vectors at the experts' output.
EXPERTS = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss")
TOKENS = 12
# Compiled by Dynamo alone, which is quick.
DYNAMO = {"VLLM_CPU_CI_ENV": "1"}
# vLLM's CPU attention approximates the soft cap's tanh: unsteered log-probabilities are 0.004 apart. Its xIELU, which
# Apertus has, keeps its parameters in bfloat16.
TOLERANCE = {"gemma2": 0.01, "apertus": 0.01}


def strong_circuit(family: str, folder: Path) -> tuple[str, Path]:
    """A tiny model, and a random circuit of it with all that it has, experts included."""
    model = family_model(family, folder / family)
    neurons = 0 if family in EXPERTS else 8
    return model, random_circuit(model, folder / "circuit", neurons=neurons, scale=1.0, experts=0.5)


@pytest.mark.parametrize("family", [family.model_type for family in FAMILIES if family.served == "tests"])
def test_a_mixed_batch_equals_the_oracle(series: Series, tmp_path: Path, family: str) -> None:
    model, circuit = strong_circuit(family, tmp_path)
    asks, oracle = mixed_batch(), Oracle(model, circuit)
    expected = oracle.generate(asks, TOKENS)
    plain = oracle.generate(unsteered(asks), TOKENS)
    # The circuit is felt, and the replies do not repeat one token, which a wrong engine might as well.
    assert sum(a.tokens != b.tokens for a, b in zip(plain, expected, strict=True)) >= len(asks) - 4
    assert sum(len(set(reply.tokens)) for reply in expected) >= 3 * len(asks)
    for reply, right in zip(series.start(model, circuit).generate(asks, TOKENS), expected, strict=True):
        assert reply.tokens == right.tokens
        assert reply.logprobs == pytest.approx(right.logprobs, abs=TOLERANCE.get(family, 1e-3))


@pytest.mark.parametrize("family", EXPERTS[:2])
def test_experts_in_a_compiled_model_equal_the_oracle(series: Series, tmp_path: Path, family: str) -> None:
    model, circuit = strong_circuit(family, tmp_path)
    asks, oracle = mixed_batch(), Oracle(model, circuit)
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
