"""Directions and importance against their definitions."""

import itertools

import numpy as np
import pytest
import torch

from emovllm_offline.data.prompts import Prompt
from emovllm_offline.discovery import directions
from emovllm_offline.discovery.activations import QUANTITIES, collect
from emovllm_offline.discovery.importance import pushed, residual_scale, sublayer_importance

RANDOM = np.random.default_rng(0)
PROMPTS = [Prompt((5, 9, 17, 33, 65, 9), range(5, 6)), Prompt((5, 99, 70, 8), range(3, 4))]


def unit(*shape):
    return directions.normalise(RANDOM.normal(size=shape))


def test_directions_sum_to_zero_before_they_are_normalised():
    differences = RANDOM.normal(size=(6, 4, 32))
    centred = directions.centred(differences)
    np.testing.assert_allclose(centred.sum(0), 0, atol=1e-12)
    got = directions.emotion_directions(differences)
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1)
    np.testing.assert_allclose(got, directions.normalise(centred))
    assert all(np.linalg.matrix_rank(got[:, layer]) == 5 for layer in range(4))


def test_zero_direction_stays_zero():
    assert not directions.normalise(np.zeros((2, 3))).any()


def test_sublayers_interleave_in_order():
    attn, mlp = unit(2, 3, 8), unit(2, 3, 8)
    both = directions.interleave(attn, mlp)
    assert both.shape == (2, 6, 8)
    np.testing.assert_array_equal(both[:, 4], attn[:, 2])
    np.testing.assert_array_equal(both[:, 5], mlp[:, 2])


@pytest.mark.parametrize(
    ("layers", "band"), [(28, range(21, 26)), (30, range(22, 28)), (4, range(3, 4)), (1, range(1))]
)
def test_reference_band_is_the_published_one_at_any_depth(layers, band):
    assert directions.band_layers(layers) == band


def test_reference_direction_ignores_the_sign_of_a_sublayer():
    sublayers = unit(2, 8, 16)
    flipped = sublayers.copy()
    flipped[:, 7] *= -1
    band = range(2, 4)
    np.testing.assert_allclose(
        directions.reference_direction(sublayers, band), directions.reference_direction(flipped, band)
    )


def test_sublayers_that_the_model_lacks_are_no_part_of_the_reference_direction():
    sublayers = unit(2, 8, 16)
    np.testing.assert_allclose(
        directions.reference_direction(sublayers, range(2, 4), [True, False, False, True] * 2),
        directions.reference_direction(sublayers[:, [4, 7]], range(1)),
    )


def test_similarity_of_a_sublayer_with_itself_is_one():
    np.testing.assert_allclose(np.diag(directions.similarity(unit(3, 8, 16))), 1)
    sublayers = unit(3, 8, 16)
    np.testing.assert_allclose(directions.similarities(sublayers).mean(0), directions.similarity(sublayers))


def test_push_reaches_the_residual_and_nothing_before_it(different_decoder):
    (prompt,) = PROMPTS[:1]
    plain = collect(different_decoder, [prompt])
    vector = torch.tensor(unit(1, 32), dtype=torch.float32)
    for sublayer in range(different_decoder.sublayers):
        with pushed(different_decoder, {sublayer: (torch.tensor([0]), vector)}):
            moved = collect(different_decoder, [prompt])
        change = {q: moved[q][0] - plain[q][0] for q in ("attn", "mlp")}
        both = torch.stack([change["attn"], change["mlp"]], 1).flatten(0, 1)  # [2L, hidden]
        torch.testing.assert_close(both[sublayer], vector[0], rtol=1e-4, atol=1e-4)
        assert not both[:sublayer].any()


def importance_both_ways(decoder, prompts, alphas):
    """By `sublayer_importance`, and by whole forwards with one push each."""
    emotions = 2
    local, reference = unit(emotions, decoder.sublayers, 32), unit(emotions, 32)
    sigma = residual_scale(decoder, prompts)
    got = sublayer_importance(decoder, prompts, local, reference, sigma, alphas, batch_size=7)
    expected = np.zeros((emotions, decoder.sublayers, len(alphas)))
    for prompt in prompts:
        ids = torch.tensor([list(prompt.ids)])
        with torch.no_grad():
            plain = decoder.forward(ids)[0, -1].double().numpy()
            for e, s, a in itertools.product(range(emotions), range(decoder.sublayers), range(len(alphas))):
                side = 1 if local[e, s] @ reference[e] >= 0 else -1
                step = alphas[a] * sigma[s]
                vector = torch.tensor(step * side * local[e, s], dtype=torch.float32)[None]
                with pushed(decoder, {s: (torch.tensor([0]), vector)}):
                    final = decoder.forward(ids)[0, -1].double().numpy()
                expected[e, s, a] += (final - plain) @ reference[e] / step / len(prompts)
    assert np.abs(expected).max() > 1e-3
    return got, expected


def test_cached_importance_equals_whole_forwards(different_decoder):
    got, expected = importance_both_ways(different_decoder, PROMPTS[1:], (0.7,))
    np.testing.assert_allclose(got, expected, atol=1e-4 * max(1, np.abs(expected).max()))


def test_importance_of_each_alpha_is_averaged_over_prompts(decoder):
    got, expected = importance_both_ways(decoder, PROMPTS, (0.1, 0.7))
    np.testing.assert_allclose(got, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    # A small push and a large one are answered differently: the alphas are not told apart by chance.
    assert np.abs(expected[..., 0] - expected[..., 1]).max() > 0.01


def test_sigma_is_the_rms_of_the_state(decoder):
    got = collect(decoder, PROMPTS)
    rms = got["mlp"][:, 2].double().square().mean(-1).sqrt().mean().item()
    assert residual_scale(decoder, PROMPTS)[5] == pytest.approx(rms)
    assert set(QUANTITIES) == set(got)
