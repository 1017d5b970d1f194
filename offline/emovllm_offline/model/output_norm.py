"""Norms between a sublayer and the residual, read off what they do: Gemma's gain is 1 + weight, OLMo's the weight."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emovllm.errors import UnsupportedModelError

# Powers of two: so large that no epsilon counts, and about as small as the square root of the usual ones.
_LARGE, _SMALL = 2.0**7, 2.0**-10
_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class OutputNorm:
    """N(y) = gain * y / sqrt(mean(y^2) + eps); gain: float32 [hidden]."""

    gain: Tensor
    eps: float

    def __call__(self, y: Tensor) -> Tensor:
        """y: [..., hidden], to float32 of that shape."""
        return self.gain * y.float() / (y.float().square().mean(-1, keepdim=True) + self.eps).sqrt()


@torch.no_grad()
def read_norm(module: nn.Module, hidden_size: int, where: str) -> OutputNorm:
    """Reads gain and epsilon off the module's answers to two inputs, in float32, and checks them on two more.

    Raises: UnsupportedModelError where it is no RMS norm with a gain (it centres its input, say, or adds a bias).
    """
    exact = copy.deepcopy(module).float()
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    ones = torch.ones(hidden_size, device=device)
    gain = exact(ones * _LARGE).float()
    answered = (exact(ones * _SMALL).float() @ gain / (gain @ gain)).item()  # _SMALL / sqrt(_SMALL^2 + eps)
    norm = OutputNorm(gain, max(0.0, _SMALL**2 * (1 / answered**2 - 1)) if answered else 0.0)
    probe = torch.randn(hidden_size, generator=torch.Generator().manual_seed(0)).to(device)
    probes = torch.stack([probe, probe * _LARGE])
    difference = (exact(probes).float() - norm(probes)).abs().max()
    if not difference <= _TOLERANCE * gain.abs().max():
        raise UnsupportedModelError(
            f"{where} norms its output by a {type(module).__name__}, which is no RMS norm with a gain: "
            "what a unit adds to the residual would be measured wrongly"
        )
    return norm
