"""A tiny model of each family equals Hugging Face with hooks; what has no such sites is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from emovllm.architectures import FAMILIES
from support.circuits import random_circuit
from support.engine import EngineError
from support.families import family_model
from support.oracle import Oracle
from support.series import Series, mixed_batch, unsteered

pytestmark = pytest.mark.engine

# Every layer has experts: circuits are of heads alone.
EXPERTS = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss")
TOKENS = 12
# vLLM's CPU attention approximates the soft cap's tanh: unsteered log-probabilities are 0.004 apart. Its xIELU, which
# Apertus has, keeps its parameters in bfloat16.
TOLERANCE = {"gemma2": 0.01, "apertus": 0.01}


@pytest.mark.parametrize("family", [family.model_type for family in FAMILIES if family.served == "tests"])
def test_a_mixed_batch_equals_the_oracle(series: Series, tmp_path: Path, family: str) -> None:
    model = family_model(family, tmp_path / family)
    circuit = random_circuit(model, tmp_path / "circuit", neurons=0 if family in EXPERTS else 8, scale=1.0)
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
def test_a_circuit_with_neurons_that_the_model_has_no_layer_for_is_refused(
    series: Series, tmp_path: Path, family: str
) -> None:
    model = family_model(family, tmp_path / family)
    with pytest.raises(EngineError) as caught:
        series.start(model, random_circuit(model, tmp_path / "circuit"))
    assert "no layer to steer for 2 of the circuit's 4 sites (mlp.0, mlp.1): experts" in str(caught.value)
