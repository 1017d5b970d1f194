"""Weights are what the model computes with, their scales counted, or discovery ends at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from emovllm.circuit_files import load_circuit
from emovllm.cli import main
from emovllm.errors import UnsupportedModelError, WeightsError
from emovllm.quantization import method_of
from emovllm.schemes import scheme_of
from emovllm_offline.model.dequantize import require_no_scales
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import load_network
from emovllm_offline.model.unpack import UNPACKED
from emovllm_offline.model.weights import Projections
from support.rounding import Rounded, awq, fp8, gptq, int8, mxfp4, mxfp8, nvfp4, packed_integers

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
# No multiple of it is as wide as the tiny model's projections.
IN_BLOCKS = {**FP8, "weight_block_size": [24, 24]}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": True}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
_EIGHT_BITS = {"num_bits": 8, "type": "float", "symmetric": True}


def compressed(format: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
    }


CHANNELS = compressed(
    "float-quantized",
    {**_EIGHT_BITS, "strategy": "channel", "dynamic": False},
    {**_EIGHT_BITS, "strategy": "token", "dynamic": True},
)
FIXED = compressed(
    "float-quantized",
    {**_EIGHT_BITS, "strategy": "tensor", "dynamic": False},
    {**_EIGHT_BITS, "strategy": "tensor", "dynamic": False},
)
INT8 = compressed(
    "int-quantized",
    {**_EIGHT_BITS, "type": "int", "strategy": "channel", "dynamic": False},
    {**_EIGHT_BITS, "type": "int", "strategy": "token", "dynamic": True},
)
_FOUR_BITS = {"num_bits": 4, "symmetric": True, "dynamic": False}
GROUPS = compressed("pack-quantized", {**_FOUR_BITS, "type": "int", "strategy": "group", "group_size": 32})
CT_NVFP4 = compressed(
    "nvfp4-pack-quantized", {**_FOUR_BITS, "type": "float", "strategy": "tensor_group", "group_size": 16}
)
CT_MXFP4 = compressed(
    "mxfp4-pack-quantized",
    {**_FOUR_BITS, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
)


def with_inputs(weight: Tensor) -> Rounded:
    """For all one scale, and one of the inputs, of which weights do not depend."""
    plain, tensors = fp8(weight, 0, 0)
    return Rounded(plain, {**tensors, "input_scale": torch.tensor(0.1)})


def out_of_order(weight: Tensor) -> Rounded:
    return gptq(weight, order=torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0)))


SCHEMES: dict[str, tuple[dict[str, Any], Callable[[Tensor], Rounded]]] = {
    "fp8": (FP8, with_inputs),
    "fp8 in blocks": (IN_BLOCKS, lambda weight: fp8(weight, 24, 24, "weight_scale_inv")),
    "fp8 by output, FBGEMM": ({"quant_method": "fbgemm_fp8"}, lambda weight: fp8(weight, 1, 0)),
    "fp8, ModelOpt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, with_inputs),
    "mxfp8, ModelOpt": ({"quant_method": "modelopt", "quant_algo": "MXFP8"}, mxfp8),
    "fp8 by output": (CHANNELS, lambda weight: fp8(weight, 1, 0)),
    "fp8, inputs by a fixed scale": (FIXED, with_inputs),
    "int8": (INT8, int8),
    "int4": (GROUPS, packed_integers),
    "awq": (AWQ, awq),
    "gptq": (GPTQ, out_of_order),
    "gptq with zeros, 8 bits": ({**GPTQ, "bits": 8, "sym": False}, lambda weight: gptq(weight, 8, symmetric=False)),
    "nvfp4, ModelOpt": (NVFP4, lambda weight: nvfp4(weight, modelopt=True)),
    "nvfp4": (CT_NVFP4, lambda weight: nvfp4(weight, modelopt=False)),
    "mxfp4": (CT_MXFP4, mxfp4),
}


def checkpoint(model, folder: Path, settings, pack) -> Path:
    """The model with the projections of its layers packed."""
    model.save_pretrained(folder)
    weights: dict[str, Tensor] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        path = name.removesuffix(".weight")
        packed = pack(weight).tensors if path.endswith("_proj") else {"weight": weight}
        weights |= {f"{path}.{part}": tensor.contiguous() for part, tensor in packed.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    declare(folder, settings)
    return folder


def declare(folder: Path, settings) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    if settings is not None:
        config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_are_those_that_the_scales_make(tiny, tmp_path, scheme):
    settings, pack = SCHEMES[scheme]
    # As `emovllm models` says.
    assert scheme_of(settings).discovered == ("emovllm" if method_of(settings) in UNPACKED else "Transformers")
    model = tiny("llama")
    decoder = find_decoder(load_network(checkpoint(model, tmp_path, settings, pack)))
    original = find_decoder(model)
    for kind in ("attn", "mlp"):
        expected = pack(torch.from_numpy(original.projection(kind, 1))).plain.numpy()
        # compressed-tensors multiplies NVFP4's scales in bfloat16.
        rounding = 2**-8 if scheme == "nvfp4" else 1e-6
        np.testing.assert_allclose(decoder.projection(kind, 1), expected, rtol=rounding, atol=1e-8)
    ids = torch.tensor([[1, 5, 9, 20]])
    inner = {}
    with torch.no_grad():
        module = decoder.layers[1].down_proj
        hook = module.register_forward_hook(lambda _, given, out: inner.update(given=given[0], out=out))
        decoder.forward(ids)
        hook.remove()
    # What the layer computes is what its weight says.
    torch.testing.assert_close(inner["out"], inner["given"] @ torch.from_numpy(decoder.projection("mlp", 1)).T)


def test_experts_are_put_together_of_what_each_ones_scales_make(tiny, tmp_path):
    model = tiny("qwen3_moe")
    network = load_network(checkpoint(model, tmp_path, *SCHEMES["fp8 in blocks"]))
    experts = "model.layers.1.mlp.experts.down_proj"
    weights, original = network.get_parameter(experts), model.get_parameter(experts)
    assert original.dim() == 3
    for one, expected in zip(weights.detach(), original.detach(), strict=True):
        torch.testing.assert_close(one, fp8(expected, 24, 24).plain)


def test_a_quantised_model_is_loaded_in_the_type_and_with_the_stop_that_its_folder_says(tiny, tmp_path):
    folder = checkpoint(tiny("llama"), tmp_path, *SCHEMES["awq"])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 7]}))
    network = load_network(folder, "bfloat16")
    assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}
    assert network.generation_config.eos_token_id == [3, 7]


def test_modelopts_own_file_tells_as_the_configuration_does(tiny, tmp_path):
    folder = checkpoint(tiny("llama"), tmp_path, None, SCHEMES["nvfp4, ModelOpt"][1])
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    weight = find_decoder(load_network(folder)).projection("mlp", 1)
    expected = nvfp4(torch.from_numpy(find_decoder(tiny("llama")).projection("mlp", 1)), modelopt=True).plain
    np.testing.assert_allclose(weight, expected.numpy(), rtol=1e-6)


def test_experts_in_four_bits_are_numbers_of_the_type_that_was_asked_for(tiny, tmp_path):
    halves, exponent = 4, 125  # 2.0 in four bits, and a scale of 2 ** (125 - 127)
    tiny("gpt_oss").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, width, out = weights.pop(name).shape
        shape = (experts, out, width // 32, 16)
        weights[f"{name}_blocks"] = torch.full(shape, halves + 16 * halves, dtype=torch.uint8)
        weights[f"{name}_scales"] = torch.full(shape[:3], exponent, dtype=torch.uint8)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    declare(tmp_path, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]})
    network = load_network(tmp_path)
    experts = network.model.layers[1].mlp.experts.down_proj
    assert experts.dtype == torch.float32
    assert (experts == 0.5).all()


def test_circuit_of_a_quantised_model_says_of_what_its_weights_were_made(tiny, tokenizer, tmp_path):
    folder = checkpoint(tiny("llama"), tmp_path / "model", *SCHEMES["fp8 in blocks"])
    tokenizer.save_pretrained(folder)
    words = ["--limit", "1", "--style", "replies", "--importance-prompts", "1", "--out", str(tmp_path / "circuit")]
    assert main(["discover", str(folder), *words]) == 0
    provenance = load_circuit(tmp_path / "circuit").spec.provenance
    assert (provenance["quantization"], provenance["weight_bits"]) == ("fp8", 8)


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "quark", "global_quant_config": {}},
        {"quant_method": "auto-round", "bits": 4},
        {"bits": 4},
    ],
)
def test_what_nothing_dequantises_is_refused_before_weights_are_read(tiny, tmp_path, settings):
    tiny("llama").config.save_pretrained(tmp_path)
    declare(tmp_path, settings)
    assert scheme_of(settings).discovered is None
    method = settings.get("quant_method", "unknown method")
    with pytest.raises(UnsupportedModelError, match=rf"is quantised \({method}\).*discover on the original"):
        load_network(tmp_path)


def renamed(pack: Callable[[Tensor], Rounded], **names: str) -> Callable[[Tensor], Rounded]:
    def packed(weight: Tensor) -> Rounded:
        plain, tensors = pack(weight)
        return Rounded(plain, {names.get(part, part): tensor for part, tensor in tensors.items()})

    return packed


def with_smoothing(weight: Tensor) -> Rounded:
    """Inputs are multiplied before they are rounded, which the weight makes up for."""
    plain, tensors = nvfp4(weight, modelopt=True)
    return Rounded(plain, {**tensors, "pre_quant_scale": torch.ones(weight.shape[1])})


@pytest.mark.parametrize(
    ("settings", "pack", "message"),
    [
        (FP8, lambda weight: fp8(weight, 24, 24), r"scales \(.*\) of weights"),
        (FP8, renamed(with_inputs, weight_scale="weight_factor"), "float8_e4m3fn, packed in a way that is not known"),
        (NVFP4, renamed(SCHEMES["nvfp4, ModelOpt"][1], weight_scale_2="whole"), "uint8, packed in a way that is not"),
        (NVFP4, with_smoothing, r"pre_quant_scale would be ignored"),
        ({**AWQ, "version": "gemv"}, awq, "known: 4 bits, gemm"),
        ({**GPTQ, "checkpoint_format": "marlin"}, gptq, "known: gptq, gptq_v2"),
        (GPTQ, renamed(gptq, qzeros="zeros"), "qzeros"),
        (GROUPS, renamed(packed_integers, weight_scale="weight_scales"), "is quantised"),
    ],
)
def test_what_is_packed_otherwise_than_the_configuration_says_is_refused(tiny, tmp_path, settings, pack, message):
    folder = checkpoint(tiny("llama"), tmp_path, settings, pack)
    with pytest.raises(UnsupportedModelError, match=message):
        load_network(folder)


@pytest.mark.parametrize("pack", [with_inputs, awq])
def test_scales_that_no_configuration_tells_of_are_not_ignored(tiny, tmp_path, pack):
    folder = checkpoint(tiny("llama"), tmp_path, None, pack)
    with pytest.raises(UnsupportedModelError, match=r"down_proj\.\w+ would be ignored"):
        load_network(folder)
    with pytest.raises(WeightsError, match=r"o_proj\.weight in model\.safetensors is quantised|no projection's weight"):
        Projections(folder)("attn", 0)


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales", "weight_packed", "weight.absmax", "weight_scale_2"])
def test_parts_of_quantised_layers_are_known(part):
    require_no_scales(["vision.layer.0.scale", "lm_head.weight"], "a model")
    with pytest.raises(UnsupportedModelError, match="a model is quantised"):
        require_no_scales([f"model.layers.0.mlp.down_proj.{part}"], "a model")


def test_package_that_a_quantised_model_needs_is_named(tiny, tmp_path, monkeypatch):
    folder = checkpoint(tiny("llama"), tmp_path, *SCHEMES["fp8 by output"])

    def missing(*_, **__):
        raise ImportError("needs\n`pip install compressed-tensors`")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", missing)
    with pytest.raises(UnsupportedModelError, match=r"was not dequantised \(needs `pip install compressed-tensors`\)"):
        load_network(folder)
