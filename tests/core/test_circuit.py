"""The circuit in memory: its sites, its digest, its directions and its fingerprint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit, save_circuit
from emovllm.errors import CircuitError
from emovllm.fingerprint import fingerprint_distance, fingerprint_entries
from emovllm.spec import CircuitSpec, ExpertsSpec, LayerSpec, ModelSpec
from support.circuits import components, random_routed


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


LAYERS = (
    LayerSpec(neurons=10, heads=0, head_dim=0, mlp="mlp.down_proj"),
    LayerSpec(neurons=0, heads=2, head_dim=4, attn="self_attn.o_proj"),
    LayerSpec(neurons=6, heads=1, head_dim=2, attn="self_attn.o_proj", mlp="mlp.shared_experts.down_proj"),
)


def uneven(circuit: Circuit, **units: Any) -> Circuit:
    """A circuit of a model whose layers differ: the second has no neurons, the first no heads."""
    model = ModelSpec(**circuit.spec.model.model_dump(exclude={"layers"}), layers=LAYERS)
    spec = CircuitSpec(model=model, emotions=circuit.spec.emotions)
    narrow = components([1, 2], [1, 0], (4,))
    narrow.delta[1, 2:] = 0
    empty = components([], [], (4,))
    neurons = {"anger": components([0, 2], [9, 5]), "calm": components([], []), **units.get("neurons", {})}
    heads = {"anger": narrow, "calm": empty, **units.get("heads", {})}
    return Circuit.fingerprinted(
        spec, neurons, heads, lambda kind, layer: np.ones((8, {"mlp": (10, 0, 6), "attn": (0, 8, 2)}[kind][layer]))
    )


def test_layers_may_differ_in_what_they_have(circuit: Circuit, tmp_path: Path) -> None:
    made = uneven(circuit)
    assert made.sites() == [("mlp", 0), ("attn", 1), ("attn", 2), ("mlp", 2)]
    assert [made.site_delta(*site).shape for site in made.sites()] == [(2, 10), (2, 8), (2, 2), (2, 6)]
    assert np.array_equal(made.site_delta("attn", 2)[0], made.heads["anger"].delta[1, :2])
    assert made.spec.model.units == "neurons: 6 or 10 in 2 of 3 layers; heads: 1 or 2 in 2 of 3 layers"
    assert circuit.spec.model.units == "10 neurons and 2 heads of 4 in each layer"
    of_mamba = LAYERS[1].model_copy(update={"attn": "mamba.out_proj"})
    hybrid = made.spec.model.model_copy(update={"layers": (LAYERS[0], of_mamba, LAYERS[2])})
    assert hybrid.units.endswith("heads: 2 in 1 of 3 layers (mamba.out_proj), 1 in 1 of 3 layers (self_attn.o_proj)")
    save_circuit(made, tmp_path)
    read = load_circuit(tmp_path)
    assert (read.spec.format_version, read.spec.model.layers, read.digest()) == (2, LAYERS, made.digest())


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"neurons": {"anger": components([1], [0])}}, "anger.neurons: layer 1 has none"),
        ({"neurons": {"anger": components([2], [6])}}, "anger.neurons.index: outside 0..5"),
        ({"heads": {"anger": components([0], [0], (4,))}}, "anger.heads: layer 0 has none"),
        ({"heads": {"anger": components([2], [0], (4,))}}, "anger.heads.delta: has a value beyond the size of its"),
    ],
)
def test_units_that_a_layer_lacks_are_refused(circuit: Circuit, units: dict[str, Any], message: str) -> None:
    with pytest.raises(CircuitError) as caught:
        uneven(circuit, **units)
    assert message in str(caught.value)


def with_experts(circuit: Circuit, **changes: Any) -> Circuit:
    """The circuit of a model whose second and third layers have three experts of five neurons; changes: of anger's."""
    layers = tuple(
        layer.model_copy(update={"experts": ExpertsSpec(count=3, neurons=5, block="mlp")} if number else {})
        for number, layer in enumerate(LAYERS)
    )
    made = uneven(circuit)
    spec = CircuitSpec(model=made.spec.model.model_copy(update={"layers": layers}), emotions=circuit.spec.emotions)
    experts = {name: random_routed(spec.model, np.random.default_rng(0)) for name in circuit.names}
    experts["anger"] = replace(experts["anger"], **changes)
    widths = {"mlp": (10, 0, 6), "attn": (0, 8, 2)}
    return Circuit.fingerprinted(
        spec,
        made.neurons,
        made.heads,
        lambda kind, layer: np.ones((3, 8)) if kind == "experts" else np.ones((8, widths[kind][layer])),
        experts=experts,
    )


def test_neurons_of_routed_experts_are_vectors_at_the_output_of_their_block(circuit: Circuit, tmp_path: Path) -> None:
    made = with_experts(circuit)
    assert [site for site in made.sites() if site[0] == "experts"] == [("experts", 1), ("experts", 2)]
    assert np.array_equal(made.site_delta("experts", 2)[1], made.experts["calm"].vectors[2])
    assert made.fingerprint["experts.1"].shape == (2, 16)
    assert made.spec.model.units.endswith("; neurons of routed experts: 15 in 2 of 3 layers")
    save_circuit(made, tmp_path)
    read = load_circuit(tmp_path)
    assert read.digest() == made.digest() != uneven(circuit).digest()
    for part, values in made.experts["anger"].parts().items():
        assert np.array_equal(read.experts["anger"].parts()[part], values)


def test_a_version_that_knows_no_experts_refuses_them(circuit: Circuit, tmp_path: Path) -> None:
    save_circuit(with_experts(circuit), tmp_path)
    content = json.loads((tmp_path / "circuit.json").read_text())
    assert content["format_version"] == 3
    for version in (1, 2):
        with pytest.raises(ValueError, match=f"belong.* to format_version {3 if version == 2 else 2}"):
            CircuitSpec.model_validate({**content, "format_version": version})
    without = uneven(circuit)
    assert without.spec.format_version == 2
    with pytest.raises(CircuitError, match=r"neurons of routed experts are of \['anger'\], and by model.layers"):
        replace(without, experts={"anger": with_experts(circuit).experts["anger"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert": np.array([1, 3], np.int32)}, "anger.experts.expert: outside 0..2"),
        ({"index": np.array([5, 0], np.int32)}, "anger.experts.index: outside 0..4"),
        ({"layer": np.array([0, 1], np.int32)}, "anger.experts: layer 0 has none"),
        ({"layer": np.array([1, 3], np.int32)}, "anger.experts.layer: outside 0..2"),
        ({"layer": np.array([1, 1], np.int32), "index": np.zeros(2, np.int32)}, "a neuron is listed twice"),
        ({"layer": np.array([1, 1], np.int32)}, "anger.experts.vectors: layer 2 has no neuron"),
        ({"delta": np.zeros(2)}, "anger.experts.delta: expected float32 (2,), got float64 (2,)"),
        ({"routing": np.array([np.nan, 0], np.float32)}, "anger.experts.routing: has a value that is not finite"),
        (
            {"vectors": np.zeros((3, 4), np.float32)},
            "anger.experts.vectors: expected float32 (3, 8), got float32 (3, 4)",
        ),
    ],
)
def test_wrong_neurons_of_experts_are_refused_with_the_reason(
    circuit: Circuit, changes: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(CircuitError) as caught:
        with_experts(circuit, **changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (LAYERS[:2], "layers has 2 entries for 3 layers"),
        ((*LAYERS[:2], LayerSpec(neurons=11, heads=1, head_dim=4)), "intermediate_size is 10, but a layer has 11"),
    ],
)
def test_layers_agree_with_the_models_sizes(circuit: Circuit, layers: tuple[LayerSpec, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSpec(**circuit.spec.model.model_dump(exclude={"layers"}), layers=layers)


def test_a_circuit_of_equal_layers_is_as_it_was(circuit: Circuit, tmp_path: Path) -> None:
    """Its file has version 1 and no new field, so that older versions read it, and its digest stays."""
    save_circuit(circuit, tmp_path)
    content = json.loads((tmp_path / "circuit.json").read_text())
    assert content["format_version"] == 1
    assert "layers" not in content["model"]
    assert load_circuit(tmp_path).digest() == "b6c4ad721ec2d8a471ed9e7664bd16f3ee16d97e6853baf66e622fd1140419cc"
