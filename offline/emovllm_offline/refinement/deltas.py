"""What refinement fits: the difference vectors of a circuit's units, injected as they will be served."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emovllm.circuit import Circuit, Components
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.model.hooks import Change, Hook, before, hooked


class Deltas:
    """The deltas of a circuit's units as one vector `theta`, each in units of its site's root mean square."""

    def __init__(self, decoder: Decoder, circuit: Circuit, start: float) -> None:
        self._sites = []
        values = []
        modules = {
            "attn": [layer.o_proj for layer in decoder.layers],
            "mlp": [layer.down_proj for layer in decoder.layers],
        }
        widths = circuit.spec.model.per_layer("head_dim")
        ones = replace(circuit, neurons=_ones(circuit.neurons), heads=_ones(circuit.heads, widths))
        at = 0
        for kind, layer in circuit.sites():
            delta = circuit.site_delta(kind, layer)  # [emotions, width]
            where = np.nonzero(ones.site_delta(kind, layer))
            initial = delta[where] * start
            scale = float(np.sqrt(np.square(initial).mean())) or 1.0
            part = slice(at, at + len(initial))
            at += len(initial)
            index = tuple(torch.from_numpy(i).to(decoder.device) for i in where)
            self._sites.append((kind, layer, modules[kind][layer], delta.shape, index, part, scale))
            values.append(initial / scale)
        flat = torch.from_numpy(np.concatenate(values).astype(np.float32))
        self.theta = flat.to(decoder.device).requires_grad_()

    def by_module(self) -> Iterator[tuple[Any, Tensor]]:
        """Each projection with what is added to its input, [emotions, width]."""
        for _, _, module, shape, index, part, scale in self._sites:
            yield module, torch.zeros(shape, device=self.theta.device).index_put(index, self.theta[part] * scale)

    def injected(self, emotions: Tensor) -> AbstractContextManager[None]:
        """Adds the deltas at every token of the forwards inside the block; emotions: that of each row."""
        return added(before, self.by_module(), emotions)

    def components(self, circuit: Circuit) -> tuple[dict[str, Components], dict[str, Components]]:
        """The circuit's neurons and heads with the present deltas."""
        dense = {}
        for (kind, layer, *_), (_, delta) in zip(self._sites, self.by_module(), strict=True):
            dense[kind, layer] = delta.detach().cpu().numpy()
        model = circuit.spec.model

        def taken(kind: str, units: Components, e: int) -> Components:
            if not len(units):
                return units
            delta = np.zeros_like(units.delta)
            for row, (layer, index) in enumerate(zip(units.layer.tolist(), units.index.tolist(), strict=True)):
                own = dense[kind, layer][e]
                if kind == "mlp":
                    delta[row] = own[index]
                else:
                    width = model.layer(layer).head_dim
                    delta[row, :width] = own[index * width : (index + 1) * width]
            return Components(units.layer, units.index, delta)

        names = list(enumerate(circuit.names))
        neurons = {name: taken("mlp", circuit.neurons[name], e) for e, name in names}
        return neurons, {name: taken("attn", circuit.heads[name], e) for e, name in names}


def added(
    side: Callable[[nn.Module, Change], Hook], vectors: Iterable[tuple[nn.Module, Tensor]], emotions: Tensor
) -> AbstractContextManager[None]:
    """Adds to what modules are given or give (`side`: `before` or `after`) their vectors, [emotions, width] each, at
    every token of the forwards inside the block; emotions: that of each row."""

    def adding(vector: Tensor) -> Change:
        rows = vector[emotions][:, None]  # [rows, 1, width]
        return lambda values: values + rows.to(values)

    return hooked([side(module, adding(vector)) for module, vector in vectors])


def _ones(units: Mapping[str, Components], widths: Sequence[int] = ()) -> dict[str, Components]:
    """The units with 1 for each number of their deltas; widths: of each layer's heads, beyond which 0 stays."""

    def ones(of_emotion: Components) -> np.ndarray:
        delta = np.ones_like(of_emotion.delta)
        if delta.ndim > 1:
            delta[np.arange(delta.shape[1]) >= np.array(widths)[of_emotion.layer][:, None]] = 0
        return delta

    return {name: Components(u.layer, u.index, ones(u)) for name, u in units.items()}
