import numpy as np
import pytest
import torch

from emovllm.errors import RefinementError
from emovllm_offline.model.find import find_decoder
from emovllm_offline.refinement.controls import ResidualVectors, random_start
from offline.conftest import DIFFERENT


@pytest.fixture(params=DIFFERENT)
def found(request, tiny, circuit_of):
    """A model and its circuit."""
    return find_decoder(tiny(request.param)), circuit_of(request.param)


def groups(circuit, kind):
    """The units of each emotion and layer: their indices and their deltas' root mean square."""
    units = getattr(circuit, kind)
    for name in circuit.names:
        for layer in np.unique(units[name].layer):
            here = units[name].at(layer)
            yield (name, layer), here.index, here.delta


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("kind", ["neurons", "heads"])
def test_random_deltas_are_as_large_and_as_many_as_the_circuits(found, kind, units):
    decoder, circuit = found
    drawn = random_start(circuit, 1, units=units)
    different = 0
    for (where, index, delta), (there, other, random) in zip(groups(circuit, kind), groups(drawn, kind), strict=True):
        assert where == there
        assert len(index) == len(other)
        different += set(index) != set(other)
        assert set(other) <= set(range(getattr(decoder.layers[where[1]], kind)))
        # Zero beyond a head's own width, in both.
        width = decoder.layers[where[1]].head_dim if kind == "heads" else None
        assert not random[..., width:].any() if width else True
        assert not np.array_equal(delta, random) or not delta.any()
        if delta.size > 30:
            assert 0.5 < np.sqrt(np.square(random).mean() / np.square(delta).mean()) < 2
    # Of a tiny layer's few heads the same may be drawn.
    assert bool(different) == units or kind == "heads"


def test_the_seed_decides_what_is_random(found):
    _, circuit = found
    assert random_start(circuit, 1, units=True).digest() == random_start(circuit, 1, units=True).digest()
    assert random_start(circuit, 1, units=True).digest() != random_start(circuit, 2, units=True).digest()


def test_vectors_of_the_residual_stream_are_written_by_all_neurons(found):
    decoder, circuit = found
    vectors = ResidualVectors(decoder, circuit)
    with_mlp = [number for number, layer in enumerate(decoder.layers) if layer.down_proj is not None]
    assert vectors.theta.shape == (len(with_mlp), len(circuit.names), decoder.hidden_size)
    torch.manual_seed(0)
    with torch.no_grad():
        vectors.theta.normal_()
    neurons, heads = vectors.components(circuit)
    assert not any(map(len, heads.values()))
    ids = torch.tensor([[5, 6, 7]] * len(circuit.names))
    emotions = torch.arange(len(circuit.names))
    with torch.no_grad(), vectors.injected(emotions):
        expected = decoder.scores(ids)
    sizes = []
    for place, number in enumerate(with_mlp):
        weight = decoder.projection("mlp", number)
        delta = np.stack([neurons[name].at(number).delta for name in circuit.names])
        theta = vectors.theta[place].detach().numpy()
        written = delta @ weight.T
        sizes.append((written * theta).sum() / np.square(theta).sum())
        np.testing.assert_allclose(written, sizes[-1] * theta, atol=1e-4 * sizes[-1])
    assert min(sizes) > 0
    assert not torch.allclose(expected, decoder.scores(ids), atol=1e-3)


def test_neurons_that_cannot_write_every_vector_are_told(decoder, circuit_of):
    circuit = circuit_of("llama")
    vectors = ResidualVectors(decoder, circuit)
    with torch.no_grad():
        decoder.layers[2].down_proj.weight[0] = 0
    with pytest.raises(RefinementError, match="layer 2 cannot write"):
        vectors.components(circuit)
