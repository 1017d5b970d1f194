"""The circuit in memory: its sites, its digest, its directions and its fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from emovllm.circuit import Circuit, fingerprint_distance, fingerprint_entries
from emovllm.errors import CircuitError
from support.circuits import components


def test_the_digest_changes_with_what_the_circuit_does_and_not_with_its_provenance(circuit: Circuit) -> None:
    def digest(**changes: Any) -> str:
        spec = circuit.spec.model_copy(update=changes)
        return Circuit(spec, circuit.neurons, circuit.heads, circuit.fingerprint).digest()

    assert digest(provenance={}) == circuit.digest()
    assert digest(scope="all") != circuit.digest()
    louder = dict(circuit.neurons, anger=components([0, 0, 2], [9, 1, 3], seed=5))
    assert Circuit(circuit.spec, louder, circuit.heads, circuit.fingerprint).digest() != circuit.digest()


def test_site_deltas_put_each_unit_at_its_place(circuit: Circuit) -> None:
    assert circuit.sites() == [("mlp", 0), ("attn", 2), ("mlp", 2)]
    mlp = circuit.site_delta("mlp", 0)
    assert mlp.shape == (2, 10)
    assert mlp[0, 9] == circuit.neurons["anger"].delta[0]
    assert mlp[0, 1] == circuit.neurons["anger"].delta[1]
    assert np.count_nonzero(mlp) == 2
    attn = circuit.site_delta("attn", 2)
    assert np.array_equal(attn[0, 4:], circuit.heads["anger"].delta[0])
    assert np.array_equal(attn[1, :4], circuit.heads["calm"].delta[0])
    assert np.count_nonzero(attn) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("calm"), "directions are of ['anger']"),
        (lambda d: d.update(calm=d["calm"][:, :4]), "directions of calm: expected float32 (3, 8), got float32 (3, 4)"),
        (lambda d: d.update(calm=d["calm"].astype(np.float64)), "got float64"),
        (lambda d: d.update(calm=d["calm"] * 1.01), "directions of calm are not of unit norm"),
        (lambda d: d["anger"].__setitem__((0, 0), np.nan), "directions of anger are not of unit norm"),
    ],
)
def test_wrong_directions_are_refused_with_the_reason(
    circuit: Circuit, change: Callable[[dict[str, np.ndarray]], None], message: str
) -> None:
    directions = {name: np.eye(3, 8, dtype=np.float32) for name in circuit.names}
    change(directions)
    with pytest.raises(CircuitError) as caught:
        replace(circuit, directions=directions)
    assert message in str(caught.value)


def test_the_fingerprint_tells_models_apart_and_floating_point_types_not() -> None:
    random = np.random.default_rng(0)
    delta = random.standard_normal((2, 300)).astype(np.float32)
    weight = random.standard_normal((64, 300)).astype(np.float32)
    expected = {"mlp.0": fingerprint_entries(delta @ weight.T)}
    rounded = (weight.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert fingerprint_distance({"mlp.0": fingerprint_entries(delta @ rounded.T)}, expected) < 0.01
    other = random.standard_normal((64, 300)).astype(np.float32)
    assert fingerprint_distance({"mlp.0": fingerprint_entries(delta @ other.T)}, expected) > 1
    assert fingerprint_distance({"mlp.0": np.full_like(expected["mlp.0"], np.nan)}, expected) != 0
