"""Weights are what the model computes with, their scales counted, or discovery ends at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from emovllm.circuit_files import load_circuit
from emovllm.cli import main
from emovllm.errors import UnsupportedModelError, WeightsError
from emovllm_offline.model.dequantize import require_no_scales
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import load_network
from emovllm_offline.model.weights import Projections

BLOCK = 16
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK], "fmt": "e4m3"}
_EIGHT_BITS = {"num_bits": 8, "type": "float", "symmetric": True}
CHANNELS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_EIGHT_BITS, "strategy": "channel", "dynamic": False},
            "input_activations": {**_EIGHT_BITS, "strategy": "token", "dynamic": True},
        }
    },
}


def blocks(weight: Tensor) -> dict[str, Tensor]:
    rows, columns = weight.shape
    apart = weight.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scale = apart.abs().amax((1, 3)) / 448
    packed = (apart / scale[:, None, :, None]).reshape(rows, columns)
    return {"weight": packed.to(torch.float8_e4m3fn), "weight_scale_inv": scale}


def channels(weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


KINDS = pytest.mark.parametrize(("settings", "pack"), [(FP8, blocks), (CHANNELS, channels)], ids=["fp8", "channels"])


def checkpoint(model, folder: Path, settings, pack) -> Path:
    """The model with the projections of its layers packed."""
    model.save_pretrained(folder)
    weights: dict[str, Tensor] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        path = name.removesuffix(".weight")
        packed = pack(weight) if path.endswith("_proj") else {"weight": weight}
        weights |= {f"{path}.{part}": tensor for part, tensor in packed.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    declare(folder, settings)
    return folder


def declare(folder: Path, settings) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    if settings is not None:
        config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))


@KINDS
def test_weights_are_those_that_the_scales_make(tiny, tmp_path, settings, pack):
    model = tiny("llama")
    folder = checkpoint(model, tmp_path, settings, pack)
    decoder = find_decoder(load_network(folder))
    original = find_decoder(model)
    for kind in ("attn", "mlp"):
        weight, expected = decoder.projection(kind, 1), original.projection(kind, 1)
        # Three bits of mantissa.
        assert abs(weight - expected).max() < 0.07 * abs(expected).max()
    ids = torch.tensor([[1, 5, 9, 20]])
    inner = {}
    with torch.no_grad():
        module = decoder.layers[1].down_proj
        hook = module.register_forward_hook(lambda _, given, out: inner.update(given=given[0], out=out))
        decoder.forward(ids)
        hook.remove()
    # What the layer computes is what its weight says.
    torch.testing.assert_close(inner["out"], inner["given"] @ torch.from_numpy(decoder.projection("mlp", 1)).T)


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
    folder = checkpoint(tiny("llama"), tmp_path / "model", FP8, blocks)
    tokenizer.save_pretrained(folder)
    words = ["--limit", "1", "--style", "replies", "--importance-prompts", "1", "--out", str(tmp_path / "circuit")]
    assert main(["discover", str(folder), *words]) == 0
    assert load_circuit(tmp_path / "circuit").spec.provenance["quantization"] == "fp8"


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "awq", "bits": 4, "group_size": 128},
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {"bits": 4},
    ],
)
def test_what_transformers_cannot_dequantise_is_refused_before_weights_are_read(tiny, tmp_path, settings):
    tiny("llama").config.save_pretrained(tmp_path)
    declare(tmp_path, settings)
    method = settings.get("quant_method", "unknown method")
    with pytest.raises(UnsupportedModelError, match=rf"is quantised \({method}\).*discover on the original"):
        load_network(tmp_path)


@KINDS
def test_scales_that_no_configuration_tells_of_are_not_ignored(tiny, tmp_path, settings, pack):
    folder = checkpoint(tiny("llama"), tmp_path, None, pack)
    with pytest.raises(UnsupportedModelError, match=r"down_proj\.weight_scale.* would be ignored"):
        load_network(folder)
    with pytest.raises(WeightsError, match=r"o_proj\.weight in model\.safetensors is quantised"):
        Projections(folder)("attn", 0)


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales", "weight_packed", "weight.absmax", "weight_scale_2"])
def test_parts_of_quantised_layers_are_known(part):
    require_no_scales(["vision.layer.0.scale", "lm_head.weight"], "a model")
    with pytest.raises(UnsupportedModelError, match="a model is quantised"):
        require_no_scales([f"model.layers.0.mlp.down_proj.{part}"], "a model")


def test_package_that_a_quantised_model_needs_is_named(tiny, tmp_path, monkeypatch):
    folder = checkpoint(tiny("llama"), tmp_path, CHANNELS, channels)

    def missing(*_, **__):
        raise ImportError("needs\n`pip install compressed-tensors`")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", missing)
    with pytest.raises(UnsupportedModelError, match=r"was not dequantised \(needs `pip install compressed-tensors`\)"):
        load_network(folder)
