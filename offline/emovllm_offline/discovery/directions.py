"""Emotion directions, and the difference vectors that a circuit injects (arXiv 2510.11328, sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emovllm_offline.discovery.parameters import BAND


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Unit L2 norm along the last axis; a zero vector stays zero."""
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 0)


def centred(differences: np.ndarray) -> np.ndarray:
    """Differences [emotions, ...] less their mean over the emotions: they sum to zero."""
    return differences - differences.mean(0)


def emotion_directions(differences: np.ndarray) -> np.ndarray:
    """Mean within-group differences of the residual, [emotions, layers, hidden], to unit directions of that shape."""
    return normalise(centred(differences))


def interleave(attn: np.ndarray, mlp: np.ndarray) -> np.ndarray:
    """[emotions, layers, hidden] twice to [emotions, 2 layers, hidden], in the order A0, M0, A1, M1, ..."""
    emotions, layers, hidden = attn.shape
    return np.stack([attn, mlp], 2).reshape(emotions, 2 * layers, hidden)


def band_layers(layers: int, band: tuple[float, float] = BAND) -> range:
    """The layers of the reference band, at least one."""
    first = min(int(band[0] * layers), layers - 1)
    return range(first, max(first, min(int(band[1] * layers), layers - 1)) + 1)


def reference_direction(sublayers: np.ndarray, band: range, present: Sequence[bool] | None = None) -> np.ndarray:
    """The direction that late layers share: [emotions, 2L, hidden] to [emotions, hidden], unit norm.

    Each of the band's sublayer directions is turned to the side of the band's first before they are summed.

    present: which sublayers there are, where some layers lack one.
    """
    part = slice(2 * band.start, 2 * band.stop)
    late = sublayers[:, part]
    if present is not None:
        late = late[:, np.array(present[part])]
    sign = np.where(np.einsum("esd,ed->es", late, late[:, 0]) < 0, -1.0, 1.0)
    return normalise(np.einsum("es,esd->ed", sign, late))


def similarities(sublayers: np.ndarray) -> np.ndarray:
    """Cosines between the directions of every two sublayers, of each emotion: [E, 2L, hidden] to [E, 2L, 2L]."""
    return np.einsum("esd,etd->est", sublayers, sublayers, optimize=True)


def similarity(sublayers: np.ndarray) -> np.ndarray:
    """Cosines between the directions of every two sublayers, averaged over the emotions: [2L, 2L]."""
    return np.einsum("esd,etd->st", sublayers, sublayers) / len(sublayers)
