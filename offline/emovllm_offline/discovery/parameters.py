"""What shapes a circuit besides the model, the data and the styles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emovllm.circuit import Scope
from emovllm_offline.discovery.allocation import CAP, LEAST_HEADS, LEAST_NEURONS, NEURON_SHARE, PER_SUBLAYER
from emovllm_offline.discovery.directions import BAND
from emovllm_offline.discovery.importance import ALPHAS


@dataclass(frozen=True, slots=True)
class Parameters:
    """The paper's values by default (method of arXiv 2510.11328).

    Of the measurement: `importance` (exact perturbation, or its first-order form by one backward pass), `alphas`,
    `band` (the reference layers, relative depths), `importance_prompts`, `head_metric` (on the residual, as the
    paper's text says, or after the norm that follows, as its authors measured).
    Of the assembly: `per_sublayer` (the budget is this x 2L), `neuron_share`, `least_neurons` and `least_heads` per
    layer, `cap` (the most that a layer gets beyond its least, as a share of the kind's budget), `scope`, `directions`
    (whether the circuit holds the directions that evaluations steer with).
    """

    importance: Literal["exact", "gradient"] = "exact"
    alphas: tuple[float, ...] = ALPHAS
    band: tuple[float, float] = BAND
    importance_prompts: int = 8
    head_metric: Literal["residual", "normed"] = "residual"
    per_sublayer: float = PER_SUBLAYER
    neuron_share: float = NEURON_SHARE
    least_neurons: int = LEAST_NEURONS
    least_heads: int = LEAST_HEADS
    cap: float = CAP
    scope: Scope = "generation"
    directions: bool = True
