"""The hidden states of texts: the residual stream after every layer, at the token or the tokens that count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emovllm.errors import ActivationError
from emovllm.progress import Bar
from emovllm_offline.model.decoder import Decoder, type_name, weights_digest
from emovllm_offline.model.hooks import Hook, hooked
from emovllm_offline.model.load import versions
from emovllm_offline.reading.prompts import Read
from emovllm_offline.storage.planes import Planes

FILE = "states.f32"


def order_of(texts: Sequence[Read]) -> np.ndarray:
    """The order in which texts are read, and their states kept: the longest first, so that those of a batch are of
    similar length, and what does not fit into memory fails at once. [texts]"""
    return np.argsort([-len(text.ids) for text in texts], kind="stable")


def batches(texts: Sequence[Read], tokens: int) -> list[tuple[int, ...]]:
    """The places of the texts of each forward, whose number times the longest is at most `tokens`, or one."""
    cut: list[tuple[int, ...]] = []
    batch: list[int] = []
    for place in order_of(texts).tolist():
        if batch and (len(batch) + 1) * len(texts[batch[0]].ids) > tokens:
            cut.append(tuple(batch))
            batch = []
        batch.append(place)
    return [*cut, tuple(batch)] if batch else cut


@torch.inference_mode()
def states_of(decoder: Decoder, texts: Sequence[Read]) -> np.ndarray:
    """The states of a few texts in one forward, float32 [layers, texts, hidden]: after each layer, that of the last
    before the final norm too, the mean over the positions that count.

    Padding is on the right, where a causal decoder lets nothing see it: no mask is needed, and a batch gives what the
    texts give one by one.
    """
    longest = max(len(text.ids) for text in texts)
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    weights = torch.zeros(len(texts), longest)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
        weights[row, list(text.positions)] = 1 / len(text.positions)
    rows: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def reduce(hidden: Tensor) -> None:
            # Reduced at once: what is kept does not grow with the length of the texts.
            rows[layer] = _pooled(hidden, weights.to(hidden.device)).cpu()

        return reduce

    hooks: list[Hook] = []
    for number, layer in enumerate(decoder.layers):
        hooks += layer.seen_after_mlp(keep(number))
    with hooked(hooks):
        decoder.forward(ids.to(decoder.device))
    return torch.stack([rows[layer] for layer in range(len(decoder.layers))]).numpy()


def _pooled(hidden: Tensor, weights: Tensor) -> Tensor:
    """hidden: [batch, tokens, width]; weights: [batch, tokens]. Returns: float32 [batch, width]."""
    # Zeros that are multiplied with what is not finite are not finite: a damaged state shows.
    return torch.einsum("bt,btw->bw", weights, hidden.float())


def read_states(
    decoder: Decoder, texts: Sequence[Read], work: Path, settings: Mapping[str, Any], *, tokens: int, shown: bool
) -> Planes:
    """The states of all texts, in the order of `order_of`, in a file of `work`: [layers, texts, hidden].

    An interrupted run goes on where it was. settings: what decides the states beside model and texts. tokens: of a
    forward. Raises: CheckpointError where the folder holds others; ActivationError; OSError.
    """
    todo = batches(texts, tokens)
    planes = Planes(
        work / FILE,
        (len(decoder.layers), len(texts), decoder.hidden_size),
        {**settings, **_inputs(decoder, texts, tokens)},
    )
    try:
        with Bar("states", len(texts), done=planes.done, unit="texts", shown=shown) as bar:
            for batch in _left(todo, planes.done):
                states = states_of(decoder, [texts[place] for place in batch])
                _require_finite(states)
                planes.append(states)
                bar.advance(len(batch))
    except BaseException:
        planes.close()
        raise
    return planes


def _left(todo: Sequence[tuple[int, ...]], done: int) -> Iterator[tuple[int, ...]]:
    """Rows are kept by whole batches: what is done ends with one."""
    for batch in todo:
        if done <= 0:
            yield batch
        done -= len(batch)


def _inputs(decoder: Decoder, texts: Sequence[Read], tokens: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{list(text.ids)} {list(text.positions)}\n".encode())
    return {
        "model": weights_digest(decoder),
        "dtype": type_name(decoder.dtype),
        "texts": digest.hexdigest(),
        "tokens of a forward": tokens,
        "versions": versions(),
    }


def _require_finite(states: np.ndarray) -> None:
    """Raises: ActivationError."""
    finite = np.isfinite(states).all((1, 2))
    if not finite.all():
        raise ActivationError(
            f"the model's activations are not finite (layer {int(np.argmin(finite))}): its weights are damaged, or its "
            "dtype is too narrow"
        )
