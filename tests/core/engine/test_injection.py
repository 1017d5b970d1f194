"""Whose weights a circuit is served with: its fingerprint, with a tolerance that knows both sides' precision."""

from __future__ import annotations

import pytest

from emovllm.circuit_files import load_circuit
from emovllm.engine.injection import check_distance
from emovllm.errors import Unsupported
from emovllm.models import QUANTIZATION, shipped_circuits
from emovllm.spec import CircuitSpec, EmotionSpec
from support.specs import ANY_MODEL

PLAIN = CircuitSpec(model=ANY_MODEL, emotions=(EmotionSpec(name="anger"),))
OF_4_BIT = PLAIN.model_copy(update={"provenance": {"quantization": "Q4_1"}})


@pytest.mark.parametrize(("spec", "quantized"), [(PLAIN, False), (PLAIN, True), (OF_4_BIT, False), (OF_4_BIT, True)])
def test_the_same_weights_are_served_without_a_word(spec: CircuitSpec, quantized: bool) -> None:
    assert check_distance(0.003, spec, quantized) is None


@pytest.mark.parametrize(("spec", "quantized"), [(PLAIN, True), (OF_4_BIT, False), (OF_4_BIT, True)])
def test_the_same_weights_in_another_precision_are_served_with_the_distance(spec: CircuitSpec, quantized: bool) -> None:
    warning = check_distance(0.104, spec, quantized)
    assert warning is not None
    assert "differs by 0.104" in warning
    assert ("made on Q4_1 weights" in warning) == (spec is OF_4_BIT)


@pytest.mark.parametrize(
    ("distance", "spec", "quantized", "limit"),
    [
        (0.104, PLAIN, False, 0.02),
        (1.4, PLAIN, True, 0.3),
        (1.4, OF_4_BIT, False, 0.3),
        (float("nan"), OF_4_BIT, True, 0.3),
    ],
)
def test_another_models_weights_are_refused(distance: float, spec: CircuitSpec, quantized: bool, limit: float) -> None:
    with pytest.raises(Unsupported, match=f"not that model's: .* the limit is {limit}"):
        check_distance(distance, spec, quantized)


def test_the_shipped_circuit_says_that_it_was_made_on_quantised_weights() -> None:
    circuit = load_circuit(shipped_circuits() / "SmolLM2-135M-Instruct")
    assert circuit.spec.provenance["quantization"] == QUANTIZATION
