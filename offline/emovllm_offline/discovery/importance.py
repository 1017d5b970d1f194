"""How much a push at one sublayer moves the final state along an emotion (arXiv 2510.11328, section 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from emovllm_offline.data.prompts import Prompt
from emovllm_offline.discovery.activations import collect
from emovllm_offline.discovery.parameters import ALPHAS
from emovllm_offline.model.decoder import Decoder, repeat_cache
from emovllm_offline.model.hooks import after, before, hooked


class Sublayers(NamedTuple):
    """What was measured of the sublayers.

    sigma: the residual's RMS [2L]. importance: [E, 2L]. by_alpha: the same for each size of the push [E, 2L, A], and
    alphas: the sizes, in units of sigma [A]; None of the first-order form, which has no size.
    """

    sigma: np.ndarray
    importance: np.ndarray
    by_alpha: np.ndarray | None = None
    alphas: np.ndarray | None = None


@contextmanager
def pushed(decoder: Decoder, pushes: dict[int, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Adds vectors to the residual at the last token, right after given sublayers.

    Parallel sublayers write to one residual: a push after attention reaches what a push after the MLP does.

    pushes: for a sublayer (A0, M0, A1, ...) the rows of the batch [n] and what they receive [n, hidden].
    """

    def push(rows: Tensor, vectors: Tensor) -> Callable[[Tensor], Tensor]:
        def change(hidden: Tensor) -> Tensor:
            hidden = hidden.clone()
            hidden[rows.to(hidden.device), -1] += vectors.to(hidden)
            return hidden

        return change

    hooks = []
    for sublayer, (rows, vectors) in pushes.items():
        layer = decoder.layers[sublayer // 2]
        if sublayer % 2:
            hooks.append(after(layer.block, push(rows, vectors)))
        elif layer.attention_writer is None:
            hooks.append(before(layer.block, push(rows, vectors)))
        else:
            hooks.append(after(layer.attention_writer, push(rows, vectors / layer.attention_scale)))
    with hooked(hooks):
        yield


def residual_scale(decoder: Decoder, prompts: Sequence[Prompt], batch_size: int = 32) -> np.ndarray:
    """Mean over prompts of the RMS of the residual after each sublayer at the last token: float64 [2L]."""
    total = np.zeros(decoder.sublayers)
    for start in range(0, len(prompts), batch_size):
        state = collect(decoder, prompts[start : start + batch_size], batch_size)
        for parity, quantity in enumerate(("attn", "mlp")):
            total[parity::2] += state[quantity].double().square().mean(-1).sqrt().sum(0).numpy()
    return total / len(prompts)


@torch.no_grad()
def sublayer_importance(
    decoder: Decoder,
    prompts: Iterable[Prompt],
    directions: np.ndarray,
    reference: np.ndarray,
    sigma: np.ndarray,
    alphas: Sequence[float] = ALPHAS,
    batch_size: int = 32,
) -> np.ndarray:
    """I = (h'_final - h_final) . v_ref / (alpha * sigma), averaged over prompts; a sublayer's importance is the
    mean over the alphas.

    h_final is the state after the final norm at the last token of a neutral prompt; h' that after adding
    alpha * sigma * v to the residual after one sublayer, v turned to the side of v_ref. Only the last token changes:
    it runs alone, against the prompt's keys and values, and all (emotion, sublayer, alpha) share its batches.

    directions: [emotions, 2L, hidden]; reference: [emotions, hidden]; sigma: [2L].
    Returns: float64 [emotions, 2L, alphas], dimensionless.
    """
    prompts = list(prompts)
    emotions, sublayers, _ = directions.shape
    device = decoder.device
    local, toward = _turned(directions, reference, device)
    # Sorted by sublayer, so that a batch needs hooks at a few sublayers only.
    runs = torch.cartesian_prod(torch.arange(sublayers), torch.arange(emotions), torch.arange(len(alphas)))
    size = torch.tensor(np.outer(sigma, alphas), dtype=torch.float32)[runs[:, 0], runs[:, 2]].to(device)
    moved = torch.zeros(emotions, sublayers, len(alphas), dtype=torch.float64)
    for prompt in prompts:
        cache = decoder.prefix_cache(prompt.ids[:-1])
        for start in range(0, len(runs), batch_size):
            batch, step = runs[start : start + batch_size], size[start : start + batch_size]
            sublayer, emotion, alpha = batch.T
            vectors = local[emotion, sublayer] * step[:, None]
            rows = {int(s): (sublayer == s).nonzero()[:, 0] for s in sublayer.unique()}
            pushes = {s: (row.to(device), vectors[row]) for s, row in rows.items()}
            # One more row, not pushed: the state to compare with.
            ids = torch.full((len(batch) + 1, 1), prompt.ids[-1], device=device)
            with pushed(decoder, pushes):
                final = decoder.forward(ids, repeat_cache(cache, len(batch) + 1))[:, -1].float()
            gain = ((final[:-1] - final[-1]) * toward[emotion]).sum(-1) / step
            moved.index_put_((emotion, sublayer, alpha), gain.double().cpu(), accumulate=True)
    return moved.numpy() / len(prompts)


def _turned(directions: np.ndarray, reference: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """The directions, each turned to the side of its emotion's reference, and the references: float32 tensors."""
    side = np.where(np.einsum("esd,ed->es", directions, reference) < 0, -1.0, 1.0)
    local = torch.tensor(directions * side[..., None], dtype=torch.float32, device=device)
    return local, torch.tensor(reference, dtype=torch.float32, device=device)


def gradient_importance(decoder: Decoder, prompt: Prompt, directions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The first-order form of `sublayer_importance`, for one prompt: the slope at a push of size 0.

    One forward and one backward pass of the last token, with a row for each emotion. Arguments as there.
    Returns: float64 [emotions, 2L].
    """
    emotions, sublayers, hidden = directions.shape
    device = decoder.device
    local, toward = _turned(directions, reference, device)
    with torch.no_grad():
        cache = repeat_cache(decoder.prefix_cache(prompt.ids[:-1]), emotions)
    rows = torch.arange(emotions, device=device)
    zero = [torch.zeros(emotions, hidden, device=device, requires_grad=True) for _ in range(sublayers)]
    ids = torch.full((emotions, 1), prompt.ids[-1], device=device)
    with torch.enable_grad(), pushed(decoder, {s: (rows, zero[s]) for s in range(sublayers)}):
        final = decoder.forward(ids, cache)[:, -1].float()
        slopes = torch.autograd.grad((final * toward).sum(), zero)  # each [emotions, hidden]
    return torch.einsum("sed,esd->es", torch.stack(slopes), local).double().cpu().numpy()
