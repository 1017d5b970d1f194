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
from vllm.distributed import get_tp_group
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import RowParallelLinear, UnquantizedLinearMethod

from emovllm.architectures import parse_site
from emovllm.circuit import Circuit
from emovllm.engine.arithmetic import add_emotion
from emovllm.engine.coefficients import Coefficients
from emovllm.engine.fold import Folded, fold
from emovllm.engine.form import Form
from emovllm.engine.lora import fold_adapters, follow_adapters
from emovllm.errors import Unsupported
from emovllm.family import Kind
from emovllm.fingerprint import Nearness, Written, fingerprint_entries, nearness, require_same_weights, site_key
from emovllm.quantization import PLAIN_BITS

logger = init_logger(__name__)


@dataclass(slots=True)
class Site:
    """One projection; `apply` is its own quant_method's, without the injection."""

    kind: Kind
    number: int
    layer: RowParallelLinear
    apply: Callable[..., Tensor]
    # Of its weights; None where they are quantised, and nothing tells how coarsely.
    bits: int | None
    # Where LoRA is enabled: vLLM's wrapper of the layer, and what to fold through its adapters, [capacity, width].
    lora: Any = None
    delta: Tensor | None = None

    @property
    def key(self) -> str:
        return site_key(self.kind, self.number)

    def shard(self, circuit: Circuit) -> np.ndarray:
        """The circuit's part for this rank: float32 [emotions, input_size_per_partition]. Raises: Unsupported."""
        delta = circuit.site_delta(self.kind, self.number)
        if delta.shape[1] != self.layer.input_size:
            raise Unsupported(
                f"the circuit was made for {circuit.spec.model.id}, whose {self.key} takes {delta.shape[1]} values; "
                f"here it takes {self.layer.input_size}"
            )
        return self.own(delta)

    def own(self, delta: np.ndarray) -> np.ndarray:
        """This rank's part of an input, [n, input_size]: [n, input_size_per_partition]."""
        width = self.layer.input_size_per_partition
        return np.ascontiguousarray(delta[:, self.layer.tp_rank * width : (self.layer.tp_rank + 1) * width])


def install(
    model: nn.Module,
    wanted: Container[tuple[str, int]] | None,
    coefficients: Coefficients,
    capacity: int,
    form: Form,
    bits: int | None,
) -> list[Site]:
    """Makes the projections that this rank holds ready for circuits: those `wanted`, or all of them.

    bits: of quantised weights, where it is known.
    Raises: Unsupported.
    """
    if type(model).__module__.startswith("vllm.models."):
        raise Unsupported(
            f"{type(model).__name__}: vLLM computes it with fused kernels, which at some batch sizes go past the "
            "projections that a circuit is added to"
        )
    sites = find(model, wanted, bits)
    for site in sites:
        _override(site, coefficients, form)
        if site.lora is not None:
            width = site.layer.input_size_per_partition
            site.delta = torch.zeros(capacity, width, dtype=torch.float32, device=coefficients.buffer.device)
            follow_adapters(site.lora, site.delta, site.layer.emotion_vectors)
    return sites


def fill(sites: list[Site], circuit: Circuit, first: int) -> dict[str, Nearness]:
    """Folds a circuit through the current weights, into the vectors from `first` on; again after weights were reloaded.

    Returns: how near each site's weights are to those that it was made for.
    Raises: Unsupported where the weights are not those it was made for, its vectors being in place all the same; where
    it cannot be folded exactly, without them.
    """
    columns = slice(first, first + len(circuit.names))
    here = set(circuit.sites())
    present = [site for site in sites if (site.kind, site.number) in here]
    written: list[Folded] = []
    refused: list[Unsupported] = []
    for site in present:
        layer = site.layer
        shard = site.shard(circuit)
        try:
            folded = fold(site.key, layer, site.apply, shard)
            layer.emotion_vectors[columns] = folded.vectors
        except Unsupported as error:
            refused.append(error)
            layer.emotion_vectors[columns] = 0
            # Other ranks wait for this one, and refuse it too.
            nothing = torch.full((len(circuit.names), layer.output_size), torch.nan)
            folded = Folded(nothing, nothing[:, 0])
        if site.delta is not None:
            site.delta[columns] = torch.from_numpy(shard).to(site.delta.device)
            fold_adapters(site.lora, site.delta, layer.emotion_vectors)
        written.append(folded)
    measured = measure(present, written)
    if refused:
        raise refused[0]
    if warning := require_same_weights(measured, circuit.fingerprint, circuit.spec):
        logger.warning(warning)
    return nearness(measured, circuit.fingerprint, circuit.spec)


def measure(sites: list[Site], folded: list[Folded]) -> dict[str, Written]:
    """What sites write, of all ranks together, by their keys; `folded` is this rank's share of each."""
    written = [
        torch.cat([torch.from_numpy(fingerprint_entries(of.vectors.cpu().numpy())), of.power.cpu()[:, None]], 1)
        for of in folded
    ]
    _sum_over_ranks(sites, written)
    return {
        site.key: Written(values[:, :-1].numpy(), float(values[:, -1].sum()), site.bits)
        for site, values in zip(sites, written, strict=True)
    }


def _sum_over_ranks(sites: list[Site], written: list[Tensor]) -> None:
    """Adds up, in place, what the shards of each site write: float32 [emotions, FINGERPRINT_SIZE + 1] each.

    On the CPU: a device's communicators may set up buffers for the type that they meet first, which is to be the
    model's.
    """
    split = [values for site, values in zip(sites, written, strict=True) if site.layer.tp_size > 1]
    if split:
        stacked = torch.stack(split)
        torch.distributed.all_reduce(stacked, group=get_tp_group().cpu_group)
        for values, whole in zip(split, stacked, strict=True):
            values.copy_(whole)


def clear(sites: list[Site], columns: slice) -> None:
    """Takes a circuit out of its columns."""
    for site in sites:
        site.layer.emotion_vectors[columns] = 0
        if site.delta is not None:
            site.delta[columns] = 0
            fold_adapters(site.lora, site.delta, site.layer.emotion_vectors)


def find(model: nn.Module, wanted: Container[tuple[str, int]] | None, bits: int | None) -> list[Site]:
    """The projections that this rank holds, those `wanted` or all of them, before anything is added to their outputs.

    Raises: Unsupported.
    """
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
        of_weights = PLAIN_BITS if isinstance(module.quant_method, UnquantizedLinearMethod) else bits
        found[parsed] = Site(*parsed, module, module.quant_method.apply, of_weights, wrappers.get(id(module)))
    return list(found.values())


def _override(site: Site, coefficients: Coefficients, form: Form) -> None:
    layer, apply = site.layer, site.apply
    columns = coefficients.buffer.shape[1]
    fused, device = form.fuses(columns), coefficients.buffer.device
    vectors = torch.zeros(columns, layer.output_size, dtype=form.vector_type(columns, device), device=device)
    layer.register_buffer("emotion_vectors", vectors, persistent=False)
    layer.register_buffer("emotion_coefficients", coefficients.buffer, persistent=False)

    def steered_apply(layer: Any, x: Any, bias: Tensor | None = None) -> Tensor:
        # Short convolutions run their projection inside an operator of vLLM's, which the compiler does not see into.
        in_graph = fused and torch.compiler.is_compiling()
        return add_emotion(apply(layer, x, bias), layer.emotion_coefficients, layer.emotion_vectors, in_graph)

    layer.quant_method.apply = _in_place(apply) if form.in_place else steered_apply


def _in_place(apply: Callable[..., Tensor]) -> Callable[..., Tensor]:
    from emovllm.engine.kernel import add_in_place

    def steered_apply(layer: Any, x: Any, bias: Tensor | None = None) -> Tensor:
        return add_in_place(apply(layer, x, bias), layer.emotion_coefficients, layer.emotion_vectors)

    return steered_apply
