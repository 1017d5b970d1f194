"""Vectors at the output of blocks of experts: where they are added, and where they are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from emovllm.circuit import Circuit
from emovllm.engine import experts
from emovllm.engine.coefficients import Coefficients
from emovllm.engine.form import Form
from emovllm.errors import Unsupported
from emovllm.spec import CircuitSpec, EmotionSpec, ExpertsSpec, LayerSpec
from support.circuits import components, random_routed
from support.specs import ANY_MODEL

HIDDEN = 4


class Block(nn.Module):
    """A block of experts that gives back what it is given; `settings` are those of vLLM's runner."""

    def __init__(self, as_tuple: bool = False, **settings: Any) -> None:
        super().__init__()
        self.experts = SimpleNamespace(moe_config=SimpleNamespace(), **settings)
        self.gate = nn.Linear(HIDDEN, 2, bias=False)
        self.as_tuple = as_tuple

    def forward(self, tokens: Tensor) -> Any:
        return (tokens, tokens[..., :2]) if self.as_tuple else tokens


def model_of(*mlps: nn.Module) -> nn.Module:
    model, layers = nn.Module(), nn.ModuleList()
    for mlp in mlps:
        layer = nn.Module()
        layer.mlp = mlp
        layers.append(layer)
    model.layers = layers
    return model


def coefficients() -> Coefficients:
    made = Coefficients(2, 8, torch.device("cpu"), max_requests=1, adapters=1)
    made.buffer[1] = torch.tensor([1.0, 0.5, 7.0, 7.0])
    return made


@pytest.mark.parametrize("as_tuple", [False, True])
def test_each_token_gets_its_emotions_vectors_and_others_not_a_bit(as_tuple: bool) -> None:
    block = Block(as_tuple)
    (site,) = experts.install(
        model_of(nn.Identity(), block), {("experts", 1)}, (2, HIDDEN), coefficients(), Form(False)
    )
    assert site.key == "experts.1"
    site.layer.emotion_vectors[:] = torch.tensor([[1.0, 2, 3, 4], [10, 20, 30, 40]])
    tokens = torch.randn(3, HIDDEN)
    output = block(tokens)
    first = output[0] if as_tuple else output
    assert torch.equal(first[[0, 2]], tokens[[0, 2]])
    torch.testing.assert_close(first[1], tokens[1] + torch.tensor([6.0, 12, 18, 24]))
    assert not as_tuple or torch.equal(output[1], tokens[..., :2])
    experts.clear([site], slice(0, 2))
    assert torch.equal((block(tokens)[0] if as_tuple else block(tokens)), tokens)


def circuit_of(gate: nn.Linear) -> Circuit:
    """A circuit of two emotions, whose one layer has a neuron of an expert, on a model with this router."""
    here = LayerSpec(neurons=0, heads=1, head_dim=1, experts=ExpertsSpec(count=2, neurons=3, block="mlp"))
    model = ANY_MODEL.model_copy(update={"num_hidden_layers": 1, "hidden_size": HIDDEN, "layers": (here,)})
    names = ("anger", "calm")
    random = np.random.default_rng(0)
    return Circuit.fingerprinted(
        CircuitSpec(model=model, emotions=tuple(EmotionSpec(name=name) for name in names)),
        {name: components([], []) for name in names},
        {name: components([], [], (model.head_dim,)) for name in names},
        lambda kind, layer: gate.weight.detach().numpy(),
        experts={name: random_routed(model, random) for name in names},
    )


def test_the_model_is_known_by_what_its_routers_say_of_the_vectors() -> None:
    block = Block()
    sites = experts.install(model_of(block), {("experts", 0)}, (2, HIDDEN), coefficients(), Form(False))
    circuit = circuit_of(block.gate)
    experts.fill(sites, circuit, 0)
    assert torch.equal(sites[0].layer.emotion_vectors, torch.from_numpy(circuit.site_delta("experts", 0)))
    with torch.no_grad():
        block.gate.weight.normal_()
    with pytest.raises(Unsupported, match="weights served here are not that model's"):
        experts.fill(sites, circuit, 0)


def test_the_mlp_of_a_layer_without_experts_is_no_block() -> None:
    assert experts.install(model_of(nn.Identity(), nn.Identity()), None, (2, HIDDEN), coefficients(), Form(False)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"moe_config": SimpleNamespace(is_sequence_parallel=True)}, "serve without --enable-expert-parallel"),
        ({"moe_config": SimpleNamespace(skip_final_all_reduce=True)}, "serve with --tensor-parallel-size 1"),
        (
            {
                "moe_config": SimpleNamespace(in_dtype=torch.float16),
                "shared_experts": nn.Identity(),
                "routed_scaling_factor": 2.5,
            },
            "serve with --dtype bfloat16",
        ),
    ],
)
def test_a_block_whose_output_is_not_whole_is_refused(settings: dict[str, Any], message: str) -> None:
    block = Block()
    block.experts = SimpleNamespace(**settings)
    with pytest.raises(Unsupported, match=rf"layers\.0\.mlp: .*{message}; or discover the circuit without --experts"):
        experts.install(model_of(block), {("experts", 0)}, (2, HIDDEN), coefficients(), Form(False))
    # Where circuits may come later, it is left as it is, and one that needs it is refused then.
    assert experts.install(model_of(block), None, (2, HIDDEN), coefficients(), Form(False)) == []
