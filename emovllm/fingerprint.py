"""The fingerprint of a circuit: a few entries of what it writes, by which a server knows the circuit's model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from emovllm.errors import Unsupported
from emovllm.quantization import PLAIN_BITS, bits_of_name
from emovllm.spec import ModelSpec

# Entries of W @ delta that are kept per sublayer and emotion to recognise the model by.
FINGERPRINT_SIZE = 16


class Made(Protocol):
    """What was made of a model, and says of which and how: a circuit's spec, or a probe's."""

    @property
    def model(self) -> ModelSpec: ...
    @property
    def provenance(self) -> dict[str, Any]: ...


class Limit(NamedTuple):
    """How far weights may be from a circuit's fingerprint, over all sites and at each, relative."""

    whole: float
    site: float


# By the bits of the weights, on either side the coarser: what rounding to them was measured to give, and some more
# (docs/reference/quantization.md); another model is 1 or more from it at each site.
LIMITS = {16: Limit(0.02, 0.02), 8: Limit(0.15, 0.25), 4: Limit(0.35, 0.8), 1: Limit(0.6, 0.9)}
# Of quantised weights of which nothing tells the width.
USUAL_BITS = 4


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


class Written(NamedTuple):
    """What a site writes, as measured on served weights.

    entries: [emotions, FINGERPRINT_SIZE]. power: the mean square that an entry would have if a circuit's units were
    summed with random signs, summed over emotions. bits: of the site's weights, None where nothing tells.
    """

    entries: np.ndarray
    power: float
    bits: int | None


class Nearness(NamedTuple):
    """How far a site's weights are from a circuit's fingerprint, relative, and how far they may be."""

    distance: float
    limit: Limit


def limit_of(bits: int) -> Limit:
    return next(limit for least, limit in LIMITS.items() if bits >= least)


def site_distance(written: Written, expected: np.ndarray) -> float:
    """Relative, as `fingerprint_distance`; where units cancel each other, relative to what they would write if they did
    not, for that is what rounding goes by."""
    wrong = float(np.square(np.float64(written.entries) - expected).sum())
    norm = max(float(np.square(np.float64(expected)).sum()), FINGERPRINT_SIZE * written.power)
    return math.sqrt(wrong / norm) if norm > 0 else (0.0 if wrong == 0 else math.inf)


def nearness(measured: Mapping[str, Written], expected: Mapping[str, np.ndarray], spec: Made) -> dict[str, Nearness]:
    """Of each site, as nearly as the weights on both sides are rounded."""
    return {
        key: Nearness(site_distance(written, expected[key]), limit_of(_coarser(written.bits, spec)))
        for key, written in measured.items()
    }


def require_same_weights(
    measured: Mapping[str, Written], expected: Mapping[str, np.ndarray], spec: Made, what: str = "circuit"
) -> str | None:
    """Holds sites, together and each, to the fingerprint, as nearly as the weights on both sides are rounded.

    spec: of the circuit, or of `what` it is, whose provenance says of which weights it was made.
    Returns: what there is to know of weights that are the same but for their precision.
    Raises: Unsupported.
    """
    if not measured:
        return None
    whole = fingerprint_distance({key: written.entries for key, written in measured.items()}, expected)
    sites = nearness(measured, expected, spec)
    most = max(site.limit.whole for site in sites.values())
    wrong = [key for key, site in sites.items() if not site.distance <= site.limit.site]
    if wrong or not whole <= most:
        worst = max(sites, key=lambda key: _of_limit(sites[key]))
        raise Unsupported(
            f"the {what} was made for {spec.model.id}, and the weights served here are not that model's: what they "
            f"write differs by {whole:.3g} (relative), the limit is {most}; by more than their limit at "
            f"{_sites(wrong, len(measured))}, the most at {worst}: {sites[worst].distance:.3g}, "
            f"limit {sites[worst].limit.site}"
        )
    if whole <= LIMITS[PLAIN_BITS].whole:
        return None
    made_on = spec.provenance.get("quantization")
    origin = f"{made_on} weights" if made_on else "other precision"
    return (
        f"the {what} was made on {origin} of {spec.model.id}: through the weights served here it differs by "
        f"{whole:.3g} (relative); what was measured with it holds for those that it was made on"
    )


def _of_limit(site: Nearness) -> float:
    """The share of its limit that a site uses up."""
    return math.inf if math.isnan(site.distance) else site.distance / site.limit.site


def _coarser(bits: int | None, spec: Made) -> int:
    """Of the weights at a site and those that the circuit was made on."""
    method, told = spec.provenance.get("quantization"), spec.provenance.get("weight_bits")
    made_on = PLAIN_BITS if method is None else told if isinstance(told, int) else bits_of_name(str(method))
    return min(bits or USUAL_BITS, made_on or USUAL_BITS)


def _sites(wrong: list[str], of: int) -> str:
    if not wrong:
        return f"none of {of} sites"
    return f"{len(wrong)} of {of} sites ({', '.join(wrong[:4])}{', ...' if len(wrong) > 4 else ''})"
