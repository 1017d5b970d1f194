"""Controls of refinement: the same fit from something else than what discovery found, which tells what discovery's
share in a refined circuit is.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from emovllm.circuit import Circuit, Components
from emovllm.errors import RefinementError
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.model.hooks import after
from emovllm_offline.refinement.deltas import Deltas, added
from emovllm_offline.refinement.settings import Training

# Of a projection's singular values, below which share of the largest one counts as none.
_SINGULAR = 1e-5


def start_of(decoder: Decoder, circuit: Circuit, training: Training) -> tuple[Circuit, Deltas | ResidualVectors]:
    """What a training starts from: the circuit, or what its control puts in the place of it, and what is fitted."""
    if training.control == "residual":
        return circuit, ResidualVectors(decoder, circuit)
    if training.control is not None:
        circuit = random_start(circuit, training.seed, units=training.control == "random-units")
    return circuit, Deltas(decoder, circuit, training.start)


def random_start(circuit: Circuit, seed: int, *, units: bool = False) -> Circuit:
    """The circuit with normal random numbers for its deltas, of the same root mean square for each emotion, kind and
    layer.

    units: the units are drawn anew as well, as many for each emotion, kind and layer, among all that the layer has.
    """
    rng = np.random.default_rng(seed)
    model = circuit.spec.model

    def drawn(of: Components, counts: list[int], widths: list[int] | None) -> Components:
        index, delta = of.index.copy(), np.zeros_like(of.delta)
        for layer in np.unique(of.layer):
            rows = np.nonzero(of.layer == layer)[0]
            if units:
                index[rows] = np.sort(rng.choice(counts[layer], len(rows), replace=False))
            here = of.delta[rows] if widths is None else of.delta[rows, : widths[layer]]
            values = rng.standard_normal(here.shape) * np.sqrt(np.square(here).mean())
            if widths is None:
                delta[rows] = values
            else:
                delta[rows, : widths[layer]] = values
        return Components(of.layer, index, delta)

    return replace(
        circuit,
        neurons={name: drawn(circuit.neurons[name], model.per_layer("neurons"), None) for name in circuit.names},
        heads={
            name: drawn(circuit.heads[name], model.per_layer("heads"), model.per_layer("head_dim"))
            for name in circuit.names
        },
    )


class ResidualVectors:
    """One vector for each layer and emotion, added to what the layer's down projection writes to the residual stream,
    as `theta` [layers, emotions, hidden]: in units of the root mean square of what the circuit writes in that layer,
    where it writes, and of its mean elsewhere. They start at zero.
    """

    def __init__(self, decoder: Decoder, circuit: Circuit) -> None:
        self._modules = {n: layer.down_proj for n, layer in enumerate(decoder.layers) if layer.down_proj is not None}
        self._decoder = decoder
        written: dict[int, np.ndarray] = {}
        for kind, layer in circuit.sites():
            folded = circuit.site_delta(kind, layer) @ decoder.projection(kind, layer).T
            written[layer] = written.get(layer, 0) + folded
        sizes = {layer: float(np.sqrt(np.square(folded).mean())) for layer, folded in written.items()}
        mean = float(np.mean(list(sizes.values()))) or 1.0
        self._scale = torch.tensor([sizes.get(layer) or mean for layer in self._modules])[:, None, None]
        shape = (len(self._modules), len(circuit.names), decoder.hidden_size)
        self.theta = torch.zeros(shape, device=decoder.device, requires_grad=True)

    def _vectors(self) -> Tensor:
        return self.theta * self._scale.to(self.theta)

    def injected(self, emotions: Tensor) -> AbstractContextManager[None]:
        """As of `Deltas`."""
        return added(after, zip(self._modules.values(), self._vectors(), strict=True), emotions)

    def components(self, circuit: Circuit) -> tuple[dict[str, Components], dict[str, Components]]:
        """All neurons of the layers, with the least deltas that write the present vectors, and no head.

        Raises: RefinementError where a layer's neurons cannot write every vector.
        """
        found: dict[str, list[tuple[int, np.ndarray]]] = {name: [] for name in circuit.names}
        for layer, vectors in zip(self._modules, self._vectors().detach().cpu().double().numpy(), strict=True):
            weight = self._decoder.projection("mlp", layer).astype(np.float64)  # [hidden, neurons]
            if np.linalg.matrix_rank(weight, tol=_SINGULAR * np.linalg.norm(weight, 2)) < len(weight):
                raise RefinementError(f"the neurons of layer {layer} cannot write every vector of the residual stream")
            for name, delta in zip(circuit.names, (np.linalg.pinv(weight) @ vectors.T).T, strict=True):
                found[name].append((layer, delta.astype(np.float32)))

        def joined(of: list[tuple[int, np.ndarray]]) -> Components:
            layers = np.concatenate([np.full(len(delta), layer, np.int32) for layer, delta in of])
            indices = np.concatenate([np.arange(len(delta), dtype=np.int32) for _, delta in of])
            return Components(layers, indices, np.concatenate([delta for _, delta in of]))

        none = Components(
            np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, circuit.spec.model.head_dim), "f4")
        )
        return {name: joined(of) for name, of in found.items()}, dict.fromkeys(circuit.names, none)
