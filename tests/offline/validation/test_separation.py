"""Principal components and the probe, on states whose structure is known."""

from __future__ import annotations

import numpy as np
import pytest

from emovllm_offline.validation.separation import principal_components, probe_f1, separate


def test_principal_components_recover_a_plane():
    rng = np.random.default_rng(0)
    inside = rng.standard_normal((200, 2)) * (5, 2)
    plane = np.linalg.qr(rng.standard_normal((50, 2)))[0]
    points, explained = principal_components(inside @ plane.T + 7, 3)
    assert explained[:2].sum() == pytest.approx(1)
    assert explained[0] > 0.7
    np.testing.assert_allclose(points[:, 2], 0, atol=1e-8)
    before, after = (np.linalg.norm(x[:, None] - x, axis=-1) for x in (inside, points))
    np.testing.assert_allclose(after, before, atol=1e-8)


def test_principal_components_are_those_of_the_full_decomposition():
    x = np.random.default_rng(1).standard_normal((120, 40)) * np.linspace(9, 1, 40)
    _, explained = principal_components(x, 3)
    _, sizes, _ = np.linalg.svd(x - x.mean(0))
    np.testing.assert_allclose(explained, sizes[:3] ** 2 / np.square(sizes).sum(), rtol=1e-3)
    assert principal_components(x[:1], 3)[0].shape == (1, 3)


@pytest.mark.parametrize("hidden", [10, 300])  # fewer and more than the prompts
def test_probe_names_what_is_separable_and_guesses_at_noise(hidden):
    rng = np.random.default_rng(0)
    labels, scenarios, wordings = (
        np.tile(np.arange(4), 60),
        np.repeat(np.arange(20), 12),
        np.repeat(np.arange(60) % 7, 4),
    )
    noise = rng.standard_normal((240, hidden))
    assert probe_f1(noise, labels, scenarios, wordings, 4).mean() == pytest.approx(0.25, abs=0.09)
    centres = rng.standard_normal((4, hidden)) * 8
    clear = noise * 0.1 + centres[labels]
    assert probe_f1(clear, labels, scenarios, wordings, 4).tolist() == [1, 1, 1, 1]
    assert probe_f1(clear, labels, scenarios, np.zeros(240), 4).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("known", ["scenario", "wording"])
def test_probe_gains_nothing_from_what_it_knows_by_heart(known):
    rng = np.random.default_rng(0)
    index = np.arange(480)
    scenarios, wordings = index // 12, index % 16
    recognised = {"scenario": scenarios, "wording": wordings}[known]
    labels = rng.integers(0, 3, 40)[recognised]
    x = np.eye(40)[recognised] * 10 + rng.standard_normal((480, 40)) * 0.01
    assert probe_f1(x, labels, scenarios, wordings, 3).mean() < 0.5


def test_probe_works_where_each_scenario_has_its_own_wording():
    scenarios = np.repeat([0, 1], 6)
    x = np.eye(3)[np.tile(np.arange(3), 4)]
    assert probe_f1(x, np.tile(np.arange(3), 4), scenarios, scenarios, 3).tolist() == [1, 1, 1]


def test_states_that_are_all_equal_have_no_components():
    points, explained = principal_components(np.full((6, 4), 2.5), 3)
    assert not points.any()
    assert not explained.any()


def test_a_component_has_the_sign_of_its_largest_entry():
    points, _ = principal_components(np.outer([-1.0, 0.0, 2.0], [0.1, -3.0, 0.5]), 1)
    # The axis is that of the middle entry, and is taken as positive there.
    assert np.sign(points[:, 0]).tolist() == [1, 1, -1]


def test_a_class_that_never_occurs_has_an_f1_of_zero():
    labels = np.tile(np.arange(3), 8)
    scenarios = np.repeat(np.arange(8), 3)
    assert probe_f1(np.eye(3)[labels], labels, scenarios, np.zeros(24), 4).tolist() == [1, 1, 1, 0]


def planted(items: int = 40, emotions: int = 3, layers: int = 2, hidden: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """States in which what all emotions of an item share outweighs, tenfold, what an emotion adds in layer 1 alone; and
    the emotions' own vectors, [emotions, hidden]."""
    rng = np.random.default_rng(3)
    shared = rng.standard_normal((items, 1, layers, hidden)) * 10
    noise = rng.standard_normal((items, emotions, layers, hidden)) * 0.05
    own = rng.standard_normal((emotions, hidden))
    states = shared + noise
    states[:, :, 1] += own
    return states, own


def apart(points: np.ndarray) -> float:
    """The share of the variance of points [emotions, items, 2] that is between the emotions."""
    return float(points.mean(1).var(0).sum() / points.reshape(-1, 2).var(0).sum())


def test_pure_states_show_what_all_emotions_of_an_item_hide():
    states, own = planted()
    separation = separate(states, 20, ["one"] * 40)
    raw, pure = ([np.array(of_layer.points) for of_layer in of] for of in (separation.components, separation.pure))
    assert [points.shape for points in raw + pure] == [(3, 40, 2)] * 4
    # The emotions of layer 1 lie apart once the rest is gone; in layer 0 there is nothing to see.
    assert apart(raw[1]) < 0.05
    assert apart(pure[1]) > 0.95
    assert apart(pure[0]) < 0.2
    # Three emotions less their mean are a plane: it has all of the variance, and their distances.
    assert sum(separation.pure[1].explained[:2]) > 0.95
    found = pure[1].mean(1)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        distance = np.linalg.norm(own[one] - own[other])
        assert np.linalg.norm(found[one] - found[other]) == pytest.approx(distance, rel=0.05)


def test_each_layer_has_the_components_of_its_own_states():
    states, _ = planted()
    separation = separate(states, 20, ["one"] * 40)
    for layer in range(2):
        points, share = principal_components(states[:, :, layer].reshape(-1, 24), 3)
        by_emotion = np.array(separation.components[layer].points)  # [emotions, items, 2]
        np.testing.assert_allclose(by_emotion.swapaxes(0, 1).reshape(-1, 2), points[:, :2], rtol=1e-3, atol=1e-3)
        assert separation.components[layer].layer == layer
        assert separation.explained[layer] == pytest.approx(share.tolist(), rel=1e-5)
