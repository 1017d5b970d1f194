"""The fingerprint of a circuit: a few entries of what it writes, by which a server knows the circuit's model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

# Entries of W @ delta that are kept per sublayer and emotion to recognise the model by.
FINGERPRINT_SIZE = 16


def site_key(kind: str, layer: int) -> str:
    return f"{kind}.{layer}"


def fingerprint_entries(folded: np.ndarray) -> np.ndarray:
    """The entries of `W @ delta` ([emotions, hidden]) that a fingerprint keeps: [emotions, FINGERPRINT_SIZE]."""
    picked = np.linspace(0, folded.shape[1] - 1, FINGERPRINT_SIZE).round().astype(np.int64)
    return np.ascontiguousarray(folded[:, picked], dtype=np.float32)


def fingerprint_distance(measured: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Relative distance ||measured - expected|| / ||expected|| over the sites in `measured`; about 1.4 for
    unrelated models, below 0.01 for the same weights in another floating-point type."""
    wrong = sum(float(np.square(np.float64(measured[key]) - expected[key]).sum()) for key in measured)
    norm = sum(float(np.square(np.float64(expected[key])).sum()) for key in measured)
    if norm == 0:
        return 0.0 if wrong == 0 else math.inf
    return math.sqrt(wrong / norm)
