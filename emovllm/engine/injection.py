"""The sites: the projections of a loaded vLLM model whose outputs carry the folded circuit.

An injection adds a constant to the input of a linear layer, W (x + delta) = W x + W delta, so it folds into one vector
per emotion, added at the layer's output and before the all-reduce: each tensor-parallel rank adds its shard's part.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import RowParallelLinear, UnquantizedLinearMethod

from emovllm.architectures import Kind, parse_site
from emovllm.circuit import Circuit
from emovllm.engine.arithmetic import MAX_FUSED, add_emotion
from emovllm.engine.coefficients import Coefficients
from emovllm.engine.lora import fold_adapters, follow_adapters
from emovllm.errors import Unsupported
from emovllm.fingerprint import fingerprint_distance, fingerprint_entries, site_key
from emovllm.spec import CircuitSpec

logger = init_logger(__name__)

# One-hot rows that go through a projection at once while folding.
_CHUNK = 512
# Relative distance to the circuit's fingerprint. Rounding weights to bfloat16 gives about 0.003, 4-bit weights about
# 0.1, another model about 1.4.
_TOLERANCE = 0.02
_TOLERANCE_QUANTIZED = 0.3


@dataclass(slots=True)
class Site:
    """One projection; `apply` is its own quant_method's, without the injection."""

    kind: Kind
    number: int
    layer: RowParallelLinear
    apply: Callable[..., Tensor]
    # Where LoRA is enabled: vLLM's wrapper of the layer, and what to fold through its adapters, [capacity, width].
    lora: Any = None
    delta: Tensor | None = None

    @property
    def key(self) -> str:
        return site_key(self.kind, self.number)

    def shard(self, circuit: Circuit) -> np.ndarray:
        """The circuit's part for this rank: float32 [emotions, input_size_per_partition]. Raises: Unsupported."""
        width = self.layer.input_size_per_partition
        delta = circuit.site_delta(self.kind, self.number)
        if delta.shape[1] != self.layer.input_size:
            raise Unsupported(
                f"the circuit was made for {circuit.spec.model.id}, whose {self.key} takes {delta.shape[1]} values; "
                f"here it takes {self.layer.input_size}"
            )
        return np.ascontiguousarray(delta[:, self.layer.tp_rank * width : (self.layer.tp_rank + 1) * width])


def install(
    model: nn.Module,
    wanted: Container[tuple[str, int]] | None,
    coefficients: Coefficients,
    capacity: int,
    compiled: bool,
) -> list[Site]:
    """Makes the projections that this rank holds ready for circuits: those `wanted`, or all of them.

    Raises: Unsupported.
    """
    if type(model).__module__.startswith("vllm.models."):
        raise Unsupported(
            f"{type(model).__name__}: vLLM computes it with fused kernels, which at some batch sizes go past the "
            "projections that a circuit is added to"
        )
    sites = _find(model, wanted)
    for site in sites:
        _override(site, coefficients, compiled)
        if site.lora is not None:
            width = site.layer.input_size_per_partition
            site.delta = torch.zeros(capacity, width, dtype=torch.float32, device=coefficients.buffer.device)
            follow_adapters(site.lora, site.delta, site.layer.emotion_vectors)
    return sites


def fill(sites: list[Site], circuit: Circuit, first: int) -> None:
    """Folds a circuit through the current weights, into the vectors from `first` on; again after weights were reloaded.

    Raises: Unsupported where the weights are not those it was made for; its vectors are in place all the same.
    """
    columns = slice(first, first + len(circuit.names))
    here = set(circuit.sites())
    measured = {}
    for site in sites:
        layer = site.layer
        if (site.kind, site.number) not in here:
            continue
        shard = site.shard(circuit)
        folded = fold(site, shard)
        layer.emotion_vectors[columns] = folded
        if site.delta is not None:
            site.delta[columns] = torch.from_numpy(shard).to(site.delta.device)
            fold_adapters(site.lora, site.delta, layer.emotion_vectors)
        whole = tensor_model_parallel_all_reduce(folded) if layer.tp_size > 1 else folded
        measured[site.key] = fingerprint_entries(whole.cpu().numpy())
    quantized = any(not isinstance(site.layer.quant_method, UnquantizedLinearMethod) for site in sites)
    distance = fingerprint_distance(measured, circuit.fingerprint) if measured else 0.0
    if warning := check_distance(distance, circuit.spec, quantized):
        logger.warning(warning)


def check_distance(distance: float, spec: CircuitSpec, quantized: bool) -> str | None:
    """Whether weights are those that a circuit was made for, by the relative distance of its fingerprint.

    quantized: whether those served are; the circuit's provenance says whether those that it was made on were.
    Returns: what there is to know of weights that are the same but for their precision.
    Raises: Unsupported.
    """
    made_on = spec.provenance.get("quantization")
    limit = _TOLERANCE_QUANTIZED if quantized or made_on else _TOLERANCE
    if not distance <= limit:
        raise Unsupported(
            f"the circuit was made for {spec.model.id}, and the weights served here are not that model's: "
            f"the folded circuit differs by {distance:.3g} (relative), the limit is {limit}"
        )
    if distance <= _TOLERANCE:
        return None
    origin = f"{made_on} weights" if made_on else "other precision"
    return (
        f"the circuit was made on {origin} of {spec.model.id}: through the weights served here it differs by "
        f"{distance:.3g} (relative); what was measured with it holds for those that it was made on"
    )


def clear(sites: list[Site], columns: slice) -> None:
    """Takes a circuit out of its columns."""
    for site in sites:
        site.layer.emotion_vectors[columns] = 0
        if site.delta is not None:
            site.delta[columns] = 0
            fold_adapters(site.lora, site.delta, site.layer.emotion_vectors)


@torch.inference_mode()
def fold(site: Site, delta: np.ndarray) -> Tensor:
    """W @ delta for this rank's shard, through the layer itself: the weight may be packed or quantised.

    The layer sees one-hot rows, so that each product is a column of W, exactly; they are summed in float32.

    Args:
        delta: float32 [emotions, input_size_per_partition].
    Returns: float32 [emotions, hidden], on the layer's device.
    """
    layer = site.layer
    device = layer.emotion_vectors.device
    used = np.flatnonzero(delta.any(axis=0))
    folded = torch.zeros(delta.shape[0], layer.output_size, dtype=torch.float32, device=device)
    for chunk in (used[start : start + _CHUNK] for start in range(0, len(used), _CHUNK)):
        rows = torch.zeros(len(chunk), delta.shape[1], dtype=layer.params_dtype, device=device)
        rows[torch.arange(len(chunk)), torch.from_numpy(chunk)] = 1
        columns = site.apply(layer, rows, None).float()
        folded += torch.from_numpy(np.ascontiguousarray(delta[:, chunk])).to(device) @ columns
    return folded


def _find(model: nn.Module, wanted: Container[tuple[str, int]] | None) -> list[Site]:
    found: dict[tuple[str, int], Site] = {}
    wrappers = {id(module.base_layer): module for module in model.modules() if hasattr(module, "lora_a_stacked")}
    for name, module in model.named_modules():
        parsed = parse_site(name)
        if parsed is None or not isinstance(module, RowParallelLinear) or (wanted is not None and parsed not in wanted):
            continue
        if parsed in found:
            raise Unsupported(f"{name}: two layers answer to {site_key(*parsed)}; this architecture is not supported")
        if not module.input_is_parallel:
            raise Unsupported(f"{name}: its input is not sharded; this architecture is not supported")
        # A copy, for quantisation schemes may share one method object between layers.
        module.quant_method = copy.copy(module.quant_method)
        found[parsed] = Site(*parsed, module, module.quant_method.apply, wrappers.get(id(module)))
    return list(found.values())


def _override(site: Site, coefficients: Coefficients, compiled: bool) -> None:
    layer, apply = site.layer, site.apply
    columns = coefficients.buffer.shape[1]
    fused = compiled and columns <= MAX_FUSED
    device = coefficients.buffer.device
    vectors = torch.zeros(columns, layer.output_size, dtype=torch.float32, device=device)
    layer.register_buffer("emotion_vectors", vectors, persistent=False)
    layer.register_buffer("emotion_coefficients", coefficients.buffer, persistent=False)

    def steered_apply(layer: Any, x: Any, bias: Tensor | None = None) -> Tensor:
        return add_emotion(apply(layer, x, bias), layer.emotion_coefficients, layer.emotion_vectors, fused)

    layer.quant_method.apply = steered_apply
