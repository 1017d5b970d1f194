"""Which weights a circuit is served with is told site by site, as nearly as both sides' precision lets it."""

from __future__ import annotations

import numpy as np
import pytest

from emovllm.circuit_files import load_circuit
from emovllm.errors import Unsupported
from emovllm.fingerprint import FINGERPRINT_SIZE, LIMITS, Limit, Written, require_same_weights, site_distance
from emovllm.models import QUANTIZATION, shipped_circuits
from emovllm.spec import CircuitSpec, EmotionSpec
from support.specs import ANY_MODEL

PLAIN = CircuitSpec(model=ANY_MODEL, emotions=(EmotionSpec(name="anger"),))
KEYS = [f"{kind}.{layer}" for layer in range(20) for kind in ("attn", "mlp")]


def made_on(**provenance: object) -> CircuitSpec:
    return PLAIN.model_copy(update={"provenance": provenance})


OF_4_BIT = made_on(quantization="Q4_1")


def entries(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {key: random.standard_normal((1, FINGERPRINT_SIZE)).astype(np.float32) for key in KEYS}


def off_by(distance: float, at: list[str] = KEYS) -> dict[str, np.ndarray]:
    """The entries, with an error of this relative size at some sites."""
    return {key: values * np.float32(1 + distance * (key in at)) for key, values in entries().items()}


def written(
    measured: dict[str, np.ndarray], bits: int | dict[str, int] | None, power: float = 0.0
) -> dict[str, Written]:
    each = bits if isinstance(bits, dict) else dict.fromkeys(KEYS, bits)
    return {key: Written(values, power, each[key]) for key, values in measured.items()}


def held(measured: dict[str, np.ndarray], bits: int | dict[str, int] | None, spec: CircuitSpec = PLAIN) -> str | None:
    return require_same_weights(written(measured, bits), entries(), spec)


SIDES = [(PLAIN, 16), (PLAIN, 8), (PLAIN, 4), (PLAIN, None), (OF_4_BIT, 16), (OF_4_BIT, 8)]


@pytest.mark.parametrize(("spec", "bits"), SIDES)
def test_the_same_weights_are_served_without_a_word(spec: CircuitSpec, bits: int | None) -> None:
    assert held(off_by(0.003), bits, spec) is None


@pytest.mark.parametrize(("spec", "bits"), [(PLAIN, 4), (PLAIN, None), (OF_4_BIT, 16), (OF_4_BIT, 4)])
def test_the_same_weights_in_another_precision_are_served_with_the_distance(
    spec: CircuitSpec, bits: int | None
) -> None:
    warning = held(off_by(0.104), bits, spec)
    assert warning is not None
    assert "differs by 0.104" in warning
    assert ("made on Q4_1 weights" in warning) == (spec is OF_4_BIT)


LIMIT = pytest.mark.parametrize(
    ("bits", "spec", "limit"),
    [
        (16, PLAIN, LIMITS[16]),
        (8, PLAIN, LIMITS[8]),
        (6, PLAIN, LIMITS[4]),
        (4, PLAIN, LIMITS[4]),
        (None, PLAIN, LIMITS[4]),
        (2, PLAIN, LIMITS[1]),
        (16, made_on(quantization="fp8"), LIMITS[8]),
        (16, made_on(quantization="compressed-tensors", weight_bits=8), LIMITS[8]),
        (16, made_on(quantization="compressed-tensors"), LIMITS[4]),
        (8, OF_4_BIT, LIMITS[4]),
        (2, OF_4_BIT, LIMITS[1]),
    ],
)


@LIMIT
def test_one_site_that_is_off_by_more_than_its_bits_allow_is_refused_by_name(
    bits: int | None, spec: CircuitSpec, limit: Limit
) -> None:
    held(off_by(0.99 * limit.site, ["mlp.7"]), bits, spec)
    # Over all sites together it would pass.
    with pytest.raises(Unsupported, match=rf"at 1 of 40 sites \(mlp\.7\), the most at mlp\.7: .* limit {limit.site}$"):
        held(off_by(1.01 * limit.site, ["mlp.7"]), bits, spec)


@LIMIT
def test_all_sites_together_are_held_to_less(bits: int | None, spec: CircuitSpec, limit: Limit) -> None:
    held(off_by(0.99 * limit.whole), bits, spec)
    with pytest.raises(Unsupported, match=rf"differs by .* the limit is {limit.whole};"):
        held(off_by(1.01 * limit.whole), bits, spec)


def test_a_site_is_held_to_its_own_bits() -> None:
    bits = {key: 16 if key.startswith("attn") else 4 for key in KEYS}
    assert held(off_by(0.1, ["mlp.3"]), bits) is None
    with pytest.raises(Unsupported, match=r"\(attn\.3\)"):
        held(off_by(0.1, ["attn.3", "mlp.3"]), bits)


def test_where_units_cancel_each_other_rounding_is_measured_by_what_they_write_apart() -> None:
    expected = {key: values * (0.05 if key == "mlp.7" else 1) for key, values in entries().items()}
    random = np.random.default_rng(1)
    rounded = {
        key: (values + 0.1 * random.standard_normal(values.shape)).astype(np.float32)
        for key, values in expected.items()
    }
    assert site_distance(Written(rounded["mlp.7"], 0.0, 4), expected["mlp.7"]) > LIMITS[4].site
    assert require_same_weights(written(rounded, 4, power=1.0), expected, PLAIN) is not None


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("bits", [16, 8, 4, 2, None])
def test_another_model_or_another_order_of_layers_is_refused_at_every_site(bits: int | None, power: float) -> None:
    values = [np.repeat(each, 6, axis=0) for each in entries().values()]
    random = np.random.default_rng(2)
    expected = {key: each * random.standard_normal((6, 1)) for key, each in zip(KEYS, values, strict=True)}
    turned = dict(zip(KEYS, [*list(expected.values())[2:], *list(expected.values())[:2]], strict=True))
    other = {key: random.standard_normal(each.shape) for key, each in expected.items()}
    for wrong in (other, turned, {key: np.zeros_like(each) for key, each in expected.items()}):
        with pytest.raises(Unsupported, match=r"not that model's: .* at (3[89]|40) of 40 sites"):
            require_same_weights(written(wrong, bits, power * (wrong is other) * 6), expected, PLAIN)


def test_what_is_no_number_is_refused() -> None:
    measured = entries()
    measured["attn.5"][0, 3] = np.nan
    with pytest.raises(Unsupported, match=r"1 of 40 sites \(attn\.5\), the most at attn\.5: nan"):
        held(measured, 4)


def test_a_rank_without_sites_has_nothing_to_say() -> None:
    assert require_same_weights({}, entries(), PLAIN) is None


def test_the_shipped_circuit_says_that_it_was_made_on_quantised_weights() -> None:
    circuit = load_circuit(shipped_circuits() / "SmolLM2-135M-Instruct")
    assert circuit.spec.provenance["quantization"] == QUANTIZATION
