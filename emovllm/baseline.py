"""The steering baseline of arXiv 2510.11328: a push of the residual stream along an emotion's direction.

After each layer of a band, h += strength * RATIO * ||h|| * v, v being the emotion's unit direction there. It is what
evaluations compare circuits with; served only where an engine was started for it.
"""

from __future__ import annotations

import math

import numpy as np

from emovllm.circuit import Circuit

# The paper adds alpha * RMS(h) * v with alpha 8 where the hidden size is 3072: this part of ||h||, which is kept on
# another width.
RATIO = 8 / math.sqrt(3072)
# The paper's layers, 11 to 20 of 28, as relative depths.
BAND = (11 / 28, 20 / 28)


def steered_layers(layers: int) -> range:
    """The layers of the same relative depth in a model of `layers`; at least one."""
    first, last = (min(round(depth * layers), layers - 1) for depth in BAND)
    return range(first, last + 1)


def layer_key(layer: int) -> str:
    return f"steering.{layer}"


def steering_vectors(circuit: Circuit, layer: int) -> np.ndarray:
    """What RMS(h) is multiplied by at strength 1, float32 [emotions, hidden]: RATIO * sqrt(hidden) * v.

    Raises: KeyError where the circuit has no directions.
    """
    directions = np.stack([circuit.directions[name][layer] for name in circuit.names])
    return (RATIO * math.sqrt(circuit.spec.model.hidden_size) * directions).astype(np.float32)
