"""Activations of prompts at the positions that count, and their streaming means over groups."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from emovllm.errors import ActivationError
from emovllm_offline.data.prompts import Prompt
from emovllm_offline.discovery.removal import Removals
from emovllm_offline.model.decoder import Decoder, repeat_cache
from emovllm_offline.model.experts import Experts
from emovllm_offline.model.hooks import Hook, before, given, hooked

# What is read in every layer: the residual after attention and after the MLP (before the final norm, in the last layer
# too), and the inputs of o_proj and down_proj.
QUANTITIES = ("attn", "mlp", "heads", "neurons")
# Where routed experts were asked for: routing weight times activation of their neurons, expert by expert, and the
# routing weights.
OF_EXPERTS = ("experts", "routing")


@dataclass(slots=True)
class Reading:
    """What `read` fills during a forward: for each quantity and layer the weighted sum over tokens, [batch, width]."""

    weights: Tensor  # [batch, tokens]
    rows: dict[str, dict[int, Tensor]] = field(default_factory=lambda: {quantity: {} for quantity in QUANTITIES})

    def stacked(self, decoder: Decoder) -> dict[str, Tensor]:
        """Each quantity as [batch, layers, width], with zeros where a layer has less than others, or none."""
        blank = next(iter(self.rows["attn"].values()))[:, :0].float()
        widths = {"heads": decoder.num_heads * decoder.head_dim, "neurons": decoder.intermediate_size}

        def padded(rows: dict[int, Tensor], width: int) -> Tensor:
            layers = (rows.get(i, blank) for i in range(len(decoder.layers)))
            return torch.stack([functional.pad(values, (0, width - values.shape[1])) for values in layers], 1)

        return {
            name: padded(rows, widths.get(name) or max(values.shape[1] for values in rows.values()))
            for name, rows in self.rows.items()
        }


@contextmanager
def read(decoder: Decoder, weights: Tensor, removals: Removals | None = None, start: int = 0) -> Iterator[Reading]:
    """Reads every quantity of every layer during the forward inside the block; weights: [batch, tokens].

    removals: reads these too; start: which of their prompts is the batch's first.
    """
    reading = Reading(weights)

    def keep(quantity: str, layer: int) -> Callable[[Tensor], None]:
        def reduce(hidden: Tensor) -> None:
            # Reduced at once: what is kept does not grow with the length of the prompts.
            # hidden: [batch, tokens, width]
            weights = reading.weights
            rows = torch.einsum("bt,btw->bw", weights.to(hidden.device), hidden.float())
            reading.rows[quantity][layer] = rows.to(weights.device)

        return reduce

    def keep_experts(layer: int, experts: Experts) -> Callable[[tuple[Any, ...]], None]:
        def reduce(arguments: tuple[Any, ...]) -> None:
            for quantity, rows in zip(OF_EXPERTS, experts.sums(arguments, reading.weights), strict=True):
                reading.rows.setdefault(quantity, {})[layer] = rows.to(reading.weights.device)

        return reduce

    hooks: list[Hook] = []
    for i, layer in enumerate(decoder.layers):
        hooks += layer.seen_after_attention(keep("attn", i))
        hooks += layer.seen_after_mlp(keep("mlp", i))
        units = {"heads": layer.o_proj, "neurons": layer.down_proj}
        hooks += [before(module, keep(quantity, i)) for quantity, module in units.items() if module is not None]
        if layer.experts is not None:
            hooks.append(given(layer.experts.module, keep_experts(i, layer.experts)))
    if removals is not None:
        hooks += removals.hooks(reading.rows, weights, start)
    with hooked(hooks):
        yield reading


@torch.no_grad()
def collect(
    decoder: Decoder, prompts: Sequence[Prompt], batch_size: int = 32, removals: Removals | None = None
) -> dict[str, Tensor]:
    """The activations of each prompt, averaged over the positions that count.

    The tokens that all prompts begin with run once (their keys and values are shared), as long as no position that
    counts is among them. Padding is on the right: what follows a token cannot reach it in a causal decoder, so that
    no mask is needed and a batch gives what the prompts give one by one.

    Returns: for each of QUANTITIES, of OF_EXPERTS where there are any, and of what `removals` reads, float32 [prompts,
        layers, width].
    Raises: ActivationError where an activation is not finite.
    """
    shared = min(_common_prefix([prompt.ids for prompt in prompts]), *(p.positions.start for p in prompts))
    cache = decoder.prefix_cache(prompts[0].ids[:shared])
    batches = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        ids, weights = _pad([prompt.ids[shared:] for prompt in batch], [p.positions for p in batch], shared)
        with read(decoder, weights.to(decoder.device), removals, start) as reading:
            decoder.forward(ids.to(decoder.device), repeat_cache(cache, len(batch)))
        batches.append(reading.stacked(decoder))
    out = {quantity: torch.cat([batch[quantity] for batch in batches]).cpu() for quantity in batches[0]}
    bad = {quantity: ~out[quantity].isfinite().all(2).all(0) for quantity in QUANTITIES}
    for layer in range(len(decoder.layers)):
        for quantity in ("heads", "attn", "neurons", "mlp"):  # in the order of the forward
            if bad[quantity][layer]:
                raise ActivationError(
                    f"the model's activations are not finite ({quantity}, layer {layer}): "
                    "its weights are damaged, or its dtype is too narrow"
                )
    return out


def _common_prefix(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many leading tokens all sequences share."""
    count = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count


def _pad(ids: list[tuple[int, ...]], positions: list[range], shared: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, ids))
    padded = torch.zeros(len(ids), longest, dtype=torch.long)
    weights = torch.zeros(len(ids), longest)
    for row, (tokens, counted) in enumerate(zip(ids, positions, strict=True)):
        padded[row, : len(tokens)] = torch.tensor(tokens)
        weights[row, counted.start - shared : counted.stop - shared] = 1 / len(counted)
    return padded, weights


class GroupMeans:
    """Streaming means over groups, in float64.

    A group holds the same user messages in all E emotions. `mean` is the average activation of an emotion,
    `difference` the average of what remains of it when the group's mean over the emotions is taken away (method
    of arXiv 2510.11328: d[g, e] = h[g, e] - mean_e h[g, .]). Nothing of a group is kept but its share in the sums.
    """

    def __init__(self, emotions: int, only_means: Collection[str] = ()) -> None:
        """only_means: quantities whose differences nobody needs."""
        self.emotions = emotions
        self.only_means = only_means
        self.groups = 0
        self._sums: dict[str, np.ndarray] = {}
        self._differences: dict[str, np.ndarray] = {}

    def add(self, activations: dict[str, Tensor], emotion: Sequence[int]) -> None:
        """Adds a group: activations [prompts, layers, width] per quantity and the emotion of each prompt."""
        index = np.asarray(emotion)
        if set(emotion) != set(range(self.emotions)):
            raise ValueError(f"a group has emotions {sorted(set(emotion))}, expected all of 0..{self.emotions - 1}")
        for quantity, values in activations.items():
            x = values.double().numpy()
            x = np.stack([x[index == e].mean(0) for e in range(self.emotions)])  # [emotions, layers, width]
            kept = [(self._sums, x)]
            if quantity not in self.only_means:
                kept.append((self._differences, x - x.mean(0)))
            for sums, addend in kept:
                if quantity in sums:
                    sums[quantity] += addend
                else:
                    sums[quantity] = addend
        self.groups += 1

    def state(self) -> dict[str, np.ndarray]:
        """Everything but the count, for a checkpoint."""
        kept = (("sums", self._sums), ("differences", self._differences))
        return {f"{name}.{quantity}": array for name, arrays in kept for quantity, array in arrays.items()}

    def restore(self, state: dict[str, np.ndarray], groups: int) -> None:
        """Goes on from `state()` after that many groups."""
        self.groups = groups
        for name, array in state.items():
            kind, _, quantity = name.partition(".")
            (self._sums if kind == "sums" else self._differences)[quantity] = array.copy()

    def mean(self, quantity: str) -> np.ndarray:
        """float64 [emotions, layers, width]"""
        return self._sums[quantity] / self.groups

    def difference(self, quantity: str) -> np.ndarray:
        """float64 [emotions, layers, width]; sums to zero over the emotions."""
        return self._differences[quantity] / self.groups
