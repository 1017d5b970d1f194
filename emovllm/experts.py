"""Neurons of routed experts, and the vectors that they fold into.

A block of experts writes the sum over experts e of r_e W_e g_e: r_e is a token's routing weight, 0 where it does not
choose e, and g_e the expert's activations. That is linear in r_e g_e, as a dense layer is in its activations. So what a
circuit adds, delta_e being the difference of r_e g_e between emotions, is the vector sum_e W_e delta_e at the block's
output: a constant of emotion and layer, whatever experts the tokens of a request choose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from emovllm.errors import CircuitError
from emovllm.spec import ModelSpec


@dataclass(frozen=True, slots=True, eq=False)
class RoutedNeurons:
    """One emotion's neurons of routed experts, and what they fold into.

    layer, expert, index: int32 [k]. delta: float32 [k], the difference of routing weight times activation. routing:
    float32 [k], the mean routing weight of the neuron's expert in the emotion, of all tokens that were measured.
    vectors: float32 [layers, hidden], for each layer the sum over its neurons of delta times the neuron's column of its
    expert's down projection; zero where there are none. They alone are added; the rest says whence they come.
    """

    PARTS: ClassVar = ("layer", "expert", "index", "delta", "routing", "vectors")

    layer: np.ndarray
    expert: np.ndarray
    index: np.ndarray
    delta: np.ndarray
    routing: np.ndarray
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.layer)

    def parts(self) -> dict[str, np.ndarray]:
        """By their names in the file."""
        return {part: getattr(self, part) for part in self.PARTS}


def check_routed(what: str, routed: RoutedNeurons, model: ModelSpec) -> None:
    """Raises: CircuitError."""
    shape = (len(routed.layer),)
    of_layers = (model.num_hidden_layers, model.hidden_size)
    for part, values in routed.parts().items():
        dtype = np.int32 if part in ("layer", "expert", "index") else np.float32
        expected = of_layers if part == "vectors" else shape
        if values.dtype != dtype or values.shape != expected:
            raise CircuitError(
                f"{what}.{part}: expected {np.dtype(dtype)} {expected}, got {values.dtype} {values.shape}"
            )
        if not np.isfinite(values).all():
            raise CircuitError(f"{what}.{part}: has a value that is not finite")
    if not ((routed.layer >= 0) & (routed.layer < model.num_hidden_layers)).all():
        raise CircuitError(f"{what}.layer: outside 0..{model.num_hidden_layers - 1}")
    for layer in np.unique(routed.layer).tolist():
        there = model.experts(layer)
        if there is None:
            raise CircuitError(f"{what}: layer {layer} has none")
        for part, count in (("expert", there.count), ("index", there.neurons)):
            values = getattr(routed, part)[routed.layer == layer]
            if not ((values >= 0) & (values < count)).all():
                raise CircuitError(f"{what}.{part}: outside 0..{count - 1}")
    if len(np.unique(np.stack([routed.layer, routed.expert, routed.index]), axis=1).T) != len(routed):
        raise CircuitError(f"{what}: a neuron is listed twice")
    without = np.setdiff1d(np.arange(model.num_hidden_layers), routed.layer)
    if routed.vectors[without].any():
        raise CircuitError(f"{what}.vectors: layer {without[routed.vectors[without].any(1)][0]} has no neuron")
