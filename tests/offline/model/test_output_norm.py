"""A norm is known by what it does, whatever it is called."""

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from emovllm.errors import UnsupportedModelError
from emovllm_offline.model.output_norm import read_norm


def randomised(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@pytest.mark.parametrize(("kind", "one"), [(Gemma2RMSNorm, 1.0), (Olmo2RMSNorm, 0.0)])
def test_gain_and_epsilon_are_those_of_the_module(kind, one, eps, dtype):
    module = randomised(kind(32, eps=eps)).to(dtype)
    norm = read_norm(module, 32, "layer 0")
    torch.testing.assert_close(norm.gain, module.weight.detach().float() + one)
    assert norm.eps == pytest.approx(eps, rel=1e-3)
    assert module.weight.dtype == dtype
    # As small as what early layers write, where epsilon counts.
    small = torch.randn(5, 32) * 1e-3
    torch.testing.assert_close(norm(small), module.float()(small), rtol=1e-4, atol=1e-5)


class Biased(nn.RMSNorm):
    def forward(self, x):
        return super().forward(x) + 0.1


@pytest.mark.parametrize(
    "module", [nn.LayerNorm(32), nn.LayerNorm(32, bias=False), Biased(32), nn.Linear(32, 32), nn.Identity()]
)
def test_what_is_no_rms_norm_with_a_gain_is_refused(module):
    with pytest.raises(
        UnsupportedModelError, match=f"layer 0 norms its output by a {type(module).__name__}, which is no"
    ):
        read_norm(randomised(module), 32, "layer 0")
