"""Vectors of routed experts on a loaded vLLM model: a forward hook on each block of experts.

The vectors are folded when a circuit is discovered, through the weights of the model that it was discovered on: there
is nothing to fold here, and the block's experts may be quantised or spread over ranks. What the block gives is whole on
every tensor-parallel rank, for vLLM sums it over the ranks within; so each rank adds the whole vector, the same. Blocks
that give a share, of the sum or of the tokens, are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

from emovllm.architectures import ROUTERS, parse_experts
from emovllm.circuit import Circuit
from emovllm.engine.arithmetic import add_emotion
from emovllm.engine.coefficients import Coefficients
from emovllm.engine.form import Form
from emovllm.errors import Unsupported
from emovllm.fingerprint import Nearness, Written, fingerprint_entries, nearness, require_same_weights, site_key
from emovllm.quantization import PLAIN_BITS

logger = init_logger(__name__)

# Of random signs, to see what a router's scores would be if values did not cancel each other.
_DRAWS = 16


@dataclass(slots=True)
class ExpertsSite:
    """One block of experts; `layer.emotion_vectors` is what its hook adds."""

    number: int
    layer: Any
    router: Any

    @property
    def key(self) -> str:
        return site_key("experts", self.number)


def install(
    model: nn.Module,
    wanted: Container[tuple[str, int]] | None,
    shape: tuple[int, int],
    coefficients: Coefficients,
    form: Form,
) -> list[ExpertsSite]:
    """Hooks the blocks of experts that this rank holds: those `wanted`, or all that can be.

    shape: how many emotions there is room for, and the hidden size.

    Raises: Unsupported where one of those wanted cannot be.
    """
    sites: dict[int, ExpertsSite] = {}
    for name, block in model.named_modules():
        number = parse_experts(name)
        if number is None or not hasattr(block, "experts"):
            continue
        if wanted is not None and ("experts", number) not in wanted:
            continue
        if trouble := _trouble(block):
            if wanted is None:
                continue
            raise Unsupported(f"{name}: {trouble}; or discover the circuit without --experts")
        if number in sites:
            raise Unsupported(f"{name}: two blocks answer to {site_key('experts', number)}; it is not supported")
        router = next(getattr(block, part) for part in ROUTERS if hasattr(block, part))
        sites[number] = ExpertsSite(number, block, router)
        _hook(block, shape, coefficients, form)
    return list(sites.values())


def fill(sites: list[ExpertsSite], circuit: Circuit, first: int) -> dict[str, Nearness]:
    """Puts a circuit's vectors in place, from `first` on.

    Returns: how near what each router says is to what the circuit was made for.
    Raises: Unsupported where the routers are not those that it was made for; its vectors are in place all the same.
    """
    here = set(circuit.sites())
    measured: dict[str, Written] = {}
    for site in sites:
        if ("experts", site.number) not in here:
            continue
        vectors = torch.from_numpy(circuit.site_delta("experts", site.number))
        site.layer.emotion_vectors[first : first + len(vectors)] = vectors
        measured[site.key] = _written(site, vectors)
    if warning := require_same_weights(measured, circuit.fingerprint, circuit.spec):
        logger.warning(warning)
    return nearness(measured, circuit.fingerprint, circuit.spec)


def _written(site: ExpertsSite, vectors: Tensor) -> Written:
    """What a router's scores of the vectors tell of the model; its weight may be packed."""
    signs = torch.randint(2, (_DRAWS, 1, vectors.shape[1]), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    scores = _routed(site, (signs * vectors).flatten(0, 1))
    power = float(np.square(scores).mean(1).sum()) / _DRAWS
    plain = isinstance(getattr(site.router, "quant_method", None), UnquantizedLinearMethod | None)
    return Written(fingerprint_entries(_routed(site, vectors)), power, PLAIN_BITS if plain else None)


def clear(sites: list[ExpertsSite], columns: slice) -> None:
    """Takes a circuit out of its columns."""
    for site in sites:
        site.layer.emotion_vectors[columns] = 0


def _trouble(block: Any) -> str:
    """Why a vector cannot be added to a block's output exactly, and what to do; nothing where it can."""
    experts = getattr(block.experts, "base_layer", block.experts)
    config = getattr(experts, "moe_config", None)
    if getattr(block, "is_sequence_parallel", False) or getattr(config, "is_sequence_parallel", False):
        return "its tokens are spread over ranks; serve without --enable-expert-parallel"
    if getattr(config, "skip_final_all_reduce", False):
        return "its output is not summed over the ranks yet; serve with --tensor-parallel-size 1"
    shared = getattr(experts, "shared_experts", None) is not None
    dtype = getattr(config, "in_dtype", None)
    if shared and dtype == torch.float16 and getattr(experts, "routed_scaling_factor", 1.0) != 1.0:
        return "in float16 vLLM scales its output down; serve with --dtype bfloat16"
    if not any(hasattr(block, part) for part in ROUTERS):
        return "it has no router by which to know the model"
    return ""


@torch.inference_mode()
def _routed(site: ExpertsSite, vectors: Tensor) -> np.ndarray:
    """What the router says of vectors [emotions, hidden], without its bias: float32 [emotions, experts]. Through the
    layer itself where it is one of vLLM's: its weight may be packed or quantised."""
    router = site.router
    device = site.layer.emotion_vectors.device
    if isinstance(router, LinearBase):
        assert router.quant_method is not None
        scores = router.quant_method.apply(router, vectors.to(device, router.params_dtype), None)
    else:
        scores = functional.linear(vectors.to(router.weight), router.weight)
    return scores.float().cpu().numpy()  # type: ignore[no-any-return]


def _hook(block: Any, shape: tuple[int, int], coefficients: Coefficients, form: Form) -> None:
    emotions, device = shape[0], coefficients.buffer.device
    vectors = torch.zeros(shape, dtype=form.vector_type(emotions, device), device=device)
    block.register_buffer("emotion_vectors", vectors, persistent=False)
    block.register_buffer("emotion_coefficients", coefficients.buffer, persistent=False)
    block.register_forward_hook(_adding(emotions, form.fuses(emotions)))


def _adding(emotions: int, fused: bool) -> Callable[[Any, Any, Any], Any]:
    def add(block: Any, args: Any, output: Any) -> Any:
        # The further columns are those of adapters and of steering, which change nothing here.
        coefficients = block.emotion_coefficients[:, :emotions]
        # Transformers' blocks of some families give their routing too.
        first = output[0] if isinstance(output, tuple) else output
        changed = add_emotion(first, coefficients, block.emotion_vectors, fused)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return add
