"""The decoder that the table of architectures describes is the one that runs."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from emovllm import architectures
from emovllm.architectures import candidates
from emovllm.errors import UnsupportedModelError
from emovllm_offline.data.prompts import Prompt
from emovllm_offline.discovery.activations import collect
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.hooks import after, hooked
from offline.conftest import REFUSED, SHAPE
from support.families import FAMILIES, VARIANTS, family_network

PROMPT = Prompt((5, 9, 17, 33, 65, 9), range(5, 6))


def row_of(decoder):
    (row,) = candidates(decoder.config.model_type)
    return row


@contextmanager
def read_mlp(layer):
    """What a layer's MLP writes."""
    written = []
    with hooked([after(layer.mlp_writer, lambda values: written.append(values.clone()))]):
        yield written


def test_dimensions_are_those_of_the_config(any_decoder):
    # Bloom's MLPs have four times the hidden size, always; Granite's shared ones have a setting of their own.
    name = any_decoder.config.model_type
    width = {"bloom": 128, "granitemoehybrid": 96, "granitemoeshared": 96, "llama4_text": 96}.get(name, 64)
    assert (any_decoder.hidden_size, any_decoder.intermediate_size) == (32, width)
    latent = {"deepseek_v2": 32, "deepseek_v3": 32, "glm4_moe_lite": 32}
    linear = {"qwen3_next": 16, "qwen3_5_text": 16, "qwen3_5_moe_text": 16}
    mamba = {"granitemoehybrid": 16, "bamba": 16, "nemotron_h": 32}
    head_dim = {**latent, **linear, **mamba}.get(name, 8)
    assert (any_decoder.num_heads, any_decoder.head_dim, any_decoder.sublayers) == (4, head_dim, 8)


@pytest.mark.parametrize(
    ("family", "mixer", "attention"),
    [
        ("qwen3_next", ("linear_attn.out_proj", 4, 16), ("self_attn.o_proj", 4, 8)),
        ("granitemoehybrid", ("mamba.out_proj", 4, 16), ("self_attn.o_proj", 4, 8)),
        # A convolution has no heads: its channels are taken in groups as wide as heads.
        ("lfm2", ("conv.out_proj", 4, 8), ("self_attn.out_proj", 4, 8)),
    ],
)
def test_heads_are_those_of_each_layers_mixer(tiny, family, mixer, attention):
    decoder = find_decoder(tiny(family))
    assert all(decoder.present)
    assert [(layer.attn, layer.heads, layer.head_dim) for layer in decoder.layers] == [mixer, attention] * 2
    assert decoder.recurrent


def test_what_parallel_sublayers_write_does_not_depend_on_each_other(any_decoder):
    row, config = row_of(any_decoder), any_decoder.config
    layer = any_decoder.layers[1]
    # Where layers are one sublayer alone, the second is an MLP, and attention's place is in the first.
    attention = any_decoder.layers[0 if row.alone else 1].attention_writer
    with read_mlp(layer) as given:
        collect(any_decoder, [PROMPT])
    with hooked([after(attention, torch.zeros_like)]), read_mlp(layer) as without:
        collect(any_decoder, [PROMPT])
    changed = not torch.allclose(given[-1], without[-1])
    assert changed != row.is_parallel(config)
    assert (layer.after_attention is None) == (row.is_parallel(config) or row.alone)


def test_a_layer_that_is_one_sublayer_alone_has_its_units_and_no_others(tiny):
    decoder = find_decoder(tiny("nemotron_h_moe"))
    assert [(layer.heads, layer.neurons, layer.attn, layer.mlp) for layer in decoder.layers] == [
        (4, 0, "mixer.out_proj", ""),
        (0, 64, "", "mixer.down_proj"),
        (4, 0, "mixer.o_proj", ""),
        (0, 48, "", "mixer.shared_experts.down_proj"),
    ]
    assert decoder.present == [True, False, False, True] * 2


def test_both_orders_of_each_family_that_has_two_are_tried():
    for row in architectures.FAMILIES:
        if isinstance(row.parallel, tuple):
            names = [row.model_type, *(name for name, (family, _) in VARIANTS.items() if family == row.model_type)]
            orders = {row.is_parallel(family_network(name).config) for name in names}
            assert orders == {True, False}, row.model_type


@pytest.mark.parametrize("family", REFUSED)
def test_what_discovery_cannot_measure_is_refused(tiny, family):
    with pytest.raises(UnsupportedModelError, match=REFUSED[family]):
        find_decoder(tiny(family))


@pytest.mark.parametrize("family", [family for family in (*FAMILIES, *VARIANTS) if family not in REFUSED])
def test_half_precision_is_not_taken_for_another_order(tiny, family):
    model = tiny(family).to(torch.bfloat16)
    assert len(find_decoder(model).layers) == 4


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("gpt_neox", {"parallel": False}),
        ("falcon", {"parallel": ()}),
        ("gemma2", {"attn_norm": None}),
        ("gemma2", {"mlp_norm": None}),
        ("olmo2", {"before_mlp": "post_feedforward_layernorm"}),
        ("granite", {"scale": None}),
        ("falcon_h1", {"scale": None}),
        ("falcon_h1", {"beside_attn": None}),
        ("nemotron_h", {"alone": False}),
    ],
)
def test_a_row_that_does_not_describe_its_model_is_refused_rather_than_measured(tiny, monkeypatch, family, wrong):
    model = tiny(family)
    name = model.config.model_type
    (row,) = candidates(name)
    monkeypatch.setitem(architectures._BY_TYPE, name, replace(row, **wrong))
    with pytest.raises(UnsupportedModelError, match=r"has no |is not what its row in emovllm/architectures.py says"):
        find_decoder(model)


def test_a_norm_of_something_else_than_the_projection_gives_is_refused(tiny):
    model = tiny("gemma2")
    mlp = model.model.layers[1].mlp
    mlp.register_forward_hook(lambda module, args, output: output * torch.arange(output.shape[-1]))
    with pytest.raises(
        UnsupportedModelError, match="norm of the mlp's output in layer 1 of Gemma2ForCausalLM is given"
    ):
        find_decoder(model)


def test_a_model_whose_states_are_not_kept_is_refused(tiny, monkeypatch):
    model = tiny("granitemoehybrid")
    monkeypatch.setattr(Decoder, "prefix_cache", lambda decoder, ids: DynamicCache(config=decoder.config))
    with pytest.raises(UnsupportedModelError, match="forgets the state of its layers between one part of a prompt"):
        find_decoder(model)


@pytest.mark.parametrize("model_type", architectures.REFUSED)
def test_what_does_not_fit_the_table_is_refused_by_its_name(model_type):
    config = SimpleNamespace(model_type=model_type)
    name, reason = architectures.REFUSED[model_type]
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(f'{name} is not supported: {reason}')}$"):
        find_decoder(SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config)))


def test_heads_are_counted_by_layer():
    sizes = {key: value for key, value in SHAPE.items() if value is not None}
    per_layer = {"num_attention_heads_per_layer": [4, 8, 4, 4], "layer_types": ["full_attention"] * 4}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = AutoConfig.for_model("laguna", **sizes, **per_layer, **experts, shared_expert_intermediate_size=16)
    decoder = find_decoder(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    assert [(layer.heads, layer.head_dim) for layer in decoder.layers] == [(4, 8), (8, 8), (4, 8), (4, 8)]


def test_a_setting_that_changes_what_is_added_is_refused(tiny):
    model = tiny("bloom")
    for block in model.transformer.h:
        block.apply_residual_connection_post_layernorm = True
    with pytest.raises(UnsupportedModelError, match="adds to the residual is not what its row"):
        find_decoder(model)


def without_a_row(model_type: str):
    sizes = {**SHAPE, "sliding_window": None, "layer_types": None, "attention_bias": False}
    config = AutoConfig.for_model(model_type, **{key: value for key, value in sizes.items() if value is not None})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("model_type", ["arcee", "gemma", "glm", "olmo", "nemotron"])
def test_a_model_without_a_row_that_is_built_as_llama_is_taken(model_type):
    decoder = find_decoder(without_a_row(model_type))
    assert decoder.layers[0].after_attention is decoder.layers[0].block.post_attention_layernorm


# HyperCLOVA X scales what its sublayers write, Persimmon has names of its own.
@pytest.mark.parametrize("model_type", ["hyperclovax", "persimmon"])
def test_a_model_without_a_row_that_is_built_otherwise_is_refused(model_type):
    with pytest.raises(UnsupportedModelError, match=f"has no row for {model_type}, and none of its rows fits"):
        find_decoder(without_a_row(model_type))


def test_missing_projection_is_named(tiny):
    model = tiny("llama")
    mlp = model.model.layers[2].mlp
    mlp.experts = nn.ModuleList([mlp.down_proj])
    del mlp.down_proj
    with pytest.raises(UnsupportedModelError, match=r"layer 2 has no mlp.down_proj, which models built as llama have"):
        find_decoder(model)


@pytest.mark.parametrize("name", ["weight", "qweight"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(tiny, name, dtype):
    model = tiny("llama")
    projection = model.model.layers[1].self_attn.o_proj
    del projection.weight
    projection.register_buffer(name, torch.zeros(32, 32, dtype=dtype))
    projection.register_buffer("weight_scale", torch.ones(1))
    with pytest.raises(UnsupportedModelError, match=r"o_proj is quantised.*discover on the original"):
        find_decoder(model)


def test_layers_of_different_width_have_units_of_their_own(tiny):
    model = tiny("llama")
    mlp = model.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = (nn.Linear(32, 48, bias=False) for _ in range(2))
    mlp.down_proj = nn.Linear(48, 32, bias=False)
    decoder = find_decoder(model)
    assert [layer.neurons for layer in decoder.layers] == [64, 48, 64, 64]
    assert decoder.projection("mlp", 1).shape == (32, 48)
