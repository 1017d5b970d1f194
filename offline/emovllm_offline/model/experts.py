"""The routed experts of a layer: what their neurons write, token by token.

Their block adds the sum over experts e of r_e (W_e g_e + b_e) to what else it has: r_e is a token's routing weight, g_e
the expert's activations. Transformers keeps the weights of all experts of a layer in one module, which is given tokens
in one row, the experts that each chooses and their routing weights; the activations within are computed again here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from emovllm.architectures import ROUTERS
from emovllm.errors import UnsupportedModelError
from emovllm_offline.model.dequantize import REMEDY
from emovllm_offline.model.unpack import PLAIN

# What the module of experts has that Transformers computes with any of its kernels.
_PARTS = ("gate_up_proj", "down_proj", "_apply_gate", "is_transposed", "has_bias")


@dataclass(frozen=True, slots=True)
class Experts:
    """path: the block's in the layer. module: of the experts, in the block. count: of experts; neurons: of each."""

    path: str
    block: nn.Module
    module: Any
    router: nn.Module
    count: int
    neurons: int

    @property
    def router_weight(self) -> Tensor:
        """[experts, hidden]"""
        weight = self.router.weight
        assert isinstance(weight, Tensor)
        return weight

    def columns(self, expert: int) -> Tensor:
        """An expert's down projection, [hidden, neurons]."""
        weight: Tensor = self.module.down_proj[expert]
        return weight.T if self.module.is_transposed else weight

    def sums(self, given: tuple[Any, ...], weights: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over tokens of what a forward gave to the module.

        weights: of each token [batch, tokens]. Returns: float32, weighed by them, routing weight times activation
        [batch, experts * neurons] and routing weight [batch, experts].
        """
        batch, tokens = weights.shape
        share = weights.flatten().to(given[0].device)
        activations = torch.zeros(batch, self.count, self.neurons, device=share.device)
        routing = torch.zeros(batch, self.count, device=share.device)
        for expert, token, weight, activation in self._chosen(given, share.nonzero()[:, 0]):
            of_token = weight.float() * share[token]
            activations[:, expert].index_add_(0, token // tokens, activation.float() * of_token[:, None])
            routing[:, expert].index_add_(0, token // tokens, of_token)
        return activations.flatten(1), routing

    def output(self, given: tuple[Any, ...]) -> Tensor:
        """What the module gives, by the formula above: float32 [tokens, hidden]."""
        out = torch.zeros(given[0].shape, device=given[0].device)
        for expert, token, weight, activation in self._chosen(given, torch.arange(len(out), device=out.device)):
            written = activation.float() @ self.columns(expert).float().T
            if self.module.has_bias:
                written = written + self.module.down_proj_bias[expert].float()
            out.index_add_(0, token, written * weight.float()[:, None])
        return out

    def _chosen(self, given: tuple[Any, ...], which: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """For each expert that any of the tokens `which` chooses: its number, these tokens [n], their routing weights
        [n] and activations [n, neurons]."""
        hidden, chosen, routing = given[:3]
        for expert in chosen[which].unique().tolist():
            row, slot = (chosen[which] == expert).nonzero(as_tuple=True)
            token = which[row]
            yield expert, token, routing[token, slot], self._activations(expert, hidden[token])

    def _activations(self, expert: int, hidden: Tensor) -> Tensor:
        weight = self.module.gate_up_proj[expert]
        bias = self.module.gate_up_proj_bias[expert] if self.module.has_bias else None
        projected = functional.linear(hidden, weight.T if self.module.is_transposed else weight, bias)
        activations: Tensor = self.module._apply_gate(projected)
        return activations


def find_experts(block: nn.Module, path: str, where: str) -> Experts | None:
    """The routed experts of a block, or None where it has none, being the MLP of a layer without.

    Raises: UnsupportedModelError where they are kept in another way than the one above.
    """
    module: Any = getattr(block, "experts", None)
    if module is None:
        return None
    router = next((part for name in ROUTERS if (part := getattr(block, name, None)) is not None), None)
    if router is None or not all(hasattr(module, part) for part in _PARTS):
        raise UnsupportedModelError(
            f"{where}: {type(module).__name__} keeps its experts in a way that --experts does not read; leave it out"
        )
    for name in ("gate_up_proj", "down_proj"):
        weight = getattr(module, name)
        if not isinstance(weight, Tensor) or weight.ndim != 3 or weight.dtype not in PLAIN:
            raise UnsupportedModelError(
                f"{where}: experts.{name} is quantised, and --experts needs the plain weights: {REMEDY}"
            )
    count, first, second = module.down_proj.shape
    return Experts(path, block, module, router, count, first if module.is_transposed else second)
