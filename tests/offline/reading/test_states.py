from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emovllm.errors import ActivationError, CheckpointError
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.model.find import find_decoder
from emovllm_offline.reading import states
from emovllm_offline.reading.prompts import Read
from emovllm_offline.reading.states import batches, order_of, read_states, states_of
from emovllm_offline.storage.planes import Planes

# Plain; scaled embeddings, norms and windows; learnt positions; positions off the mask; a state.
FAMILIES = ["llama", "gemma2", "gpt2", "falcon_alibi", "granitemoehybrid"]


def texts(*lengths: int, pooling: str = "last") -> list[Read]:
    """Random tokens; of `mean` all but the first count."""
    torch.manual_seed(1)
    ids = [tuple(torch.randint(3, 128, (length,)).tolist()) for length in lengths]
    return [Read(one, (len(one) - 1,) if pooling == "last" else tuple(range(1, len(one)))) for one in ids]


def by_hugging_face(decoder: Decoder, text: Read) -> np.ndarray:
    """Its own hidden states of the text alone, [layers, hidden]; the last are behind the final norm."""
    with torch.no_grad():
        out = decoder.model(torch.tensor([text.ids]), output_hidden_states=True)
    return torch.stack([state[0, list(text.positions)].mean(0) for state in out.hidden_states[1:]]).numpy()


def final_norm(decoder: Decoder) -> Any:
    return [child for name, child in decoder.trunk.named_children() if "norm" in name or name == "ln_f"][-1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_padded_batch_has_the_states_that_hugging_face_gives_each_text_alone(
    tiny: Callable[[str], Any], family: str, pooling: str
) -> None:
    decoder = find_decoder(tiny(family))
    batch = texts(3, 9, 5, pooling=pooling)
    together = states_of(decoder, batch)
    assert together.shape == (len(decoder.layers), 3, decoder.hidden_size)
    for row, text in enumerate(batch):
        expected = by_hugging_face(decoder, text)
        atol = 1e-5 * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(together[:-1, row], expected[:-1], rtol=1e-5, atol=atol)
        if pooling == "last":
            with torch.no_grad():
                normed = final_norm(decoder)(torch.from_numpy(together[-1, row])).numpy()
            np.testing.assert_allclose(normed, expected[-1], rtol=1e-4, atol=1e-4)


def test_batches_hold_texts_of_similar_length_the_longest_first() -> None:
    of = texts(2, 7, 3, 6, 7)
    assert batches(of, 14) == [(1, 4), (3, 2), (0,)]
    assert batches(of, 1) == [(1,), (4,), (3,), (2,), (0,)]
    assert batches([], 14) == []
    assert order_of(of).tolist() == [1, 4, 3, 2, 0]


def test_states_do_not_depend_on_the_size_of_a_batch(decoder: Decoder, tmp_path: Path) -> None:
    of = texts(3, 9, 5, 4, 7)
    read = []
    for tokens in (1, 20, 1000):
        with read_states(decoder, of, tmp_path / str(tokens), {}, tokens=tokens, shown=False) as planes:
            read.append(np.stack([planes.plane(layer) for layer in range(len(decoder.layers))]))
    order = order_of(of)
    alone = np.concatenate([states_of(decoder, [of[place]]) for place in order], 1)
    # A sum's rounding goes by the largest of its terms, on every set of kernels.
    size = np.abs(alone).max(axis=(1, 2), keepdims=True)
    for one in read:
        np.testing.assert_array_less(np.abs(one - alone) / size, 1e-5)


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The next reading ends after so many batches, of which each is on disk."""
    left = iter(range(after))

    def stop(decoder: Decoder, batch: Sequence[Read]) -> np.ndarray:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return states_of(decoder, batch)

    monkeypatch.setattr(states, "Planes", partial(Planes, seconds=0))
    monkeypatch.setattr(states, "states_of", stop)


def test_an_interrupted_reading_goes_on_and_ends_with_the_same_file(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = texts(3, 9, 5, 4, 7)
    read_states(decoder, of, tmp_path / "whole", {}, tokens=14, shown=False).close()
    with monkeypatch.context() as patched:
        interrupted(patched, 2)
        with pytest.raises(KeyboardInterrupt):
            read_states(decoder, of, tmp_path / "cut", {}, tokens=14, shown=False)
    calls: list[Sequence[Read]] = []
    monkeypatch.setattr(states, "states_of", lambda decoder, batch: (calls.append(batch), states_of(decoder, batch))[1])
    read_states(decoder, of, tmp_path / "cut", {}, tokens=14, shown=False).close()
    assert len(calls) == len(batches(of, 14)) - 2 > 0
    assert (tmp_path / "cut" / states.FILE).read_bytes() == (tmp_path / "whole" / states.FILE).read_bytes()


@pytest.mark.parametrize("what", ["model", "texts", "pooling"])
def test_states_of_something_else_are_refused(tiny: Callable[[str], Any], tmp_path: Path, what: str) -> None:
    of = texts(3, 5)
    read_states(find_decoder(tiny("llama")), of, tmp_path, {"pooling": "last"}, tokens=14, shown=False).close()
    network = tiny("llama")
    if what == "model":
        with torch.no_grad():
            network.model.layers[0].mlp.down_proj.weight.mul_(2)
    other = texts(3, 5, pooling="mean") if what == "texts" else of
    settings = {"pooling": "mean" if what == "pooling" else "last"}
    with pytest.raises(CheckpointError, match=rf"other settings: {what};.*--fresh"):
        read_states(find_decoder(network), other, tmp_path, settings, tokens=14, shown=False)


def test_a_model_that_computes_no_numbers_is_refused_by_the_layer(decoder: Decoder, tmp_path: Path) -> None:
    with torch.no_grad():
        decoder.layers[2].down_proj.weight[0, 0] = float("nan")  # type: ignore[union-attr, index]
    with pytest.raises(ActivationError, match=r"not finite \(layer 2\)"):
        read_states(decoder, texts(3), tmp_path, {}, tokens=14, shown=False)
