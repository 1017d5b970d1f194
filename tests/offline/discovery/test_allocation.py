import csv
from pathlib import Path

import numpy as np
import pytest

from emovllm_offline.discovery.allocation import allocate, share

GOLDEN = Path(__file__).parent / "llama32_3b_anger_allocation.csv"


def golden():
    """Importance [2L] in the order A0, M0, ...; published units per layer of both kinds."""
    with GOLDEN.open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (int(row["layer"]), row["kind"]))
    importance = np.array([float(row["importance"]) for row in rows])
    counts = np.array([int(row["k_assigned"]) for row in rows])
    return importance, counts[1::2], counts[0::2]


def test_published_allocation_is_reproduced_exactly():
    importance, neurons, heads = golden()
    got = allocate(importance, neurons_per_layer=8192, heads_per_layer=24)
    assert got.neurons.tolist() == neurons.tolist()
    assert got.heads.tolist() == heads.tolist()
    assert (got.neurons.sum(), got.heads.sum()) == (392, 168)


def test_budget_is_spent_to_the_last_unit():
    importance = np.random.default_rng(0).uniform(size=60)
    got = allocate(importance, 1536, 9, per_sublayer=10)
    assert got.neurons.sum() == 420
    assert got.heads.sum() == 180
    assert got.neurons.min() >= 4
    assert got.heads.min() >= 2
    assert got.heads.max() <= 9


def test_a_layer_gets_no_more_than_it_has():
    assert share(np.array([9.0, 1.0, 1.0]), budget=12, least=2, available=4).tolist() == [4, 4, 4]
    assert share(np.array([9.0, 1.0, 1.0]), budget=99, least=2, available=4).tolist() == [4, 4, 4]


def test_one_layer_cannot_take_the_whole_remainder():
    assert share(np.array([100.0, 1.0, 1.0, 1.0]), budget=40, least=1, available=99)[0] == 1 + 16


def test_what_a_full_layer_leaves_goes_to_the_others():
    assert share(np.array([9.0, 2.0, 1.0]), budget=12, least=1, available=5).tolist() == [5, 4, 3]


def test_negative_importance_gets_the_minimum():
    assert share(np.array([-5.0, 1.0, 1.0, 2.0]), budget=20, least=2, available=99).tolist() == [2, 5, 5, 8]


def test_unimportant_layers_do_not_get_what_is_left_over():
    assert share(np.array([-5.0, 1.0]), budget=20, least=2, available=6).tolist() == [2, 6]


def test_importance_without_a_positive_value_is_shared_evenly():
    assert share(np.array([-1.0, 0.0, -2.0]), budget=12, least=2, available=9).tolist() == [4, 4, 4]


@pytest.mark.parametrize(("layers", "available"), [(1, 1), (2, 3), (4, 64)])
def test_minimum_shrinks_with_tiny_models(layers, available):
    got = share(np.ones(layers), budget=layers, least=4, available=available)
    assert got.tolist() == [1] * layers
