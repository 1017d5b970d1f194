"""The routed experts of a layer, as discovery reads them; what is built otherwise is refused."""

from __future__ import annotations

import pytest
import torch

from emovllm.errors import UnsupportedModelError
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.hooks import given, hooked
from offline.conftest import ROUTED


def test_the_families_with_routed_experts_are_tried():
    assert {"mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "glm4_moe", "gpt_oss"} <= set(ROUTED)


@pytest.mark.parametrize("family", ROUTED)
@torch.no_grad()
def test_sums_are_those_of_each_token_and_expert_that_it_chooses(tiny, family):
    decoder = find_decoder(tiny(family), experts=True)
    layer = decoder.layers[-1].experts
    seen = []
    with hooked([given(layer.module, seen.append)]):
        decoder.forward(torch.arange(10).reshape(2, 5))
    weights = torch.tensor([[0.0, 0.25, 0.75, 0, 0], [0, 0, 0, 0, 2.0]])
    activations, routing = layer.sums(seen[0], weights)
    hidden, chosen, of_token = seen[0]
    expected = torch.zeros(2, layer.count, layer.neurons)
    shares = torch.zeros(2, layer.count)
    for token, share in enumerate(weights.flatten().tolist()):
        for expert, weight in zip(chosen[token].tolist(), of_token[token], strict=True):
            expected[token // 5, expert] += share * weight * layer._activations(expert, hidden[token : token + 1])[0]
            shares[token // 5, expert] += share * weight
    torch.testing.assert_close(activations, expected.flatten(1))
    torch.testing.assert_close(routing, shares)
    assert (routing > 0).any()
    assert layer.router_weight.shape == (layer.count, decoder.hidden_size)


def test_experts_are_left_out_unless_they_are_asked_for(tiny):
    assert not any(layer.experts for layer in find_decoder(tiny("mixtral")).layers)
    # The first layer of GLM 4.5 is dense.
    assert [bool(layer.experts) for layer in find_decoder(tiny("glm4_moe"), experts=True).layers] == [
        False,
        *[True] * 3,
    ]


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("llama", "LlamaForCausalLM has no routed experts: leave out --experts"),
        ("llama4_text", "the routed experts of Llama 4 cannot be discovered: they weigh what experts are given"),
    ],
)
def test_models_whose_experts_cannot_be_read_are_refused(tiny, family, message):
    with pytest.raises(UnsupportedModelError, match=message):
        find_decoder(tiny(family), experts=True)


def test_quantised_experts_are_refused(tiny):
    model = tiny("mixtral")
    experts = model.model.layers[1].mlp.experts
    experts.down_proj = torch.nn.Parameter(experts.down_proj.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match=r"layer 1: experts.down_proj is quantised, and --experts needs"):
        find_decoder(model, experts=True)


@pytest.mark.parametrize("part", ["experts", "block"])
def test_experts_that_write_something_else_are_refused(tiny, part):
    model = tiny("mixtral")
    block = model.model.layers[2].mlp
    if part == "experts":
        block.experts.register_forward_hook(lambda module, args, output: output * 1.1)
    else:
        block.register_forward_hook(lambda module, args, output: output * output.abs())
    with pytest.raises(UnsupportedModelError, match="the experts of layer 2 do not write the sum of routing weight"):
        find_decoder(model, experts=True)
