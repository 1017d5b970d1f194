"""What `emovllm models` says of a model is what loading it finds."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from emovllm.architectures import FAMILIES, REFUSED, candidates
from emovllm.cli import main
from emovllm.known_models import FUSED, describe, table, units_of
from emovllm_offline.model.find import find_decoder
from support.families import VARIANTS, family_config, family_network

DISCOVERED = [family.model_type for family in FAMILIES if not family.not_discovered]

DEEPER = {"num_hidden_layers": 4, "layer_types": None}


@pytest.mark.parametrize("name", [*DISCOVERED, *VARIANTS])
def test_the_units_told_by_the_configuration_are_those_of_the_model(name: str) -> None:
    config = family_config(name, **DEEPER)
    (family,) = candidates(config.model_type)
    units = units_of(family, config.to_dict())
    decoder = find_decoder(family_network(name, **DEEPER), experts=any(units.experts))
    assert units.neurons == tuple(layer.neurons for layer in decoder.layers)
    assert units.heads == tuple(layer.heads for layer in decoder.layers)
    assert units.attn == tuple(layer.attn for layer in decoder.layers)
    assert units.experts == tuple(layer.experts is not None for layer in decoder.layers)


def test_the_table_has_each_family_and_each_that_is_refused() -> None:
    lines = table().splitlines()
    types = {line.split("|")[2].strip() for line in lines if line.startswith("| ")} - {"model_type"}
    assert types == {family.model_type for family in FAMILIES} | set(REFUSED)
    assert all(any(reason in line for line in lines) for _, reason in REFUSED.values())


def write(folder: Path, **config: object) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_model_of_experts_and_of_text_and_images_is_told_by_its_configuration(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 48, "num_attention_heads": 32, "hidden_size": 2048, "intermediate_size": 6144}
    moe = describe(write(tmp_path / "moe", model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], **sizes))
    assert "neurons     none: its MLPs are experts" in moe
    assert "experts     routed ones in 48 of 48 layers; with `emovllm discover --experts`" in moe
    assert "heads       32 in each of 48 layers, inputs of self_attn.o_proj" in moe
    quantised = {"quantization_config": {"quant_method": "fp8"}}
    text = {"model_type": "gemma3_text", **sizes}
    composite = describe(write(tmp_path / "both", model_type="gemma3", text_config=text, **quantised))
    assert "gemma3_text" in composite
    assert "the language model in it alone" in composite
    assert "discovery   yes, on the weights that it stands for (dequantised by emovllm)" in composite
    assert "weights     fp8: FP8, 8 bits; folded exactly through the kernel's arithmetic" in composite
    assert "may differ by 0.15 through them, by 0.25 at a site" in composite
    others = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    refused = describe(write(tmp_path / "others", model_type="llama", **sizes, **others))
    assert "discovery   refused: discover on the original, and serve this one with its circuit" in refused
    assert "weights     bitsandbytes: others, 4 bits; not tried" in refused


def test_heads_of_a_hybrid_are_told_by_mixer(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 40, "num_attention_heads": 32, "hidden_size": 2048, "shared_intermediate_size": 8192}
    types = (["mamba"] * 9 + ["attention"]) * 4
    hybrid = describe(
        write(tmp_path / "hybrid", model_type="granitemoehybrid", layer_types=types, mamba_n_heads=64, **sizes)
    )
    assert "64 in 36 of 40 layers, inputs of mamba.out_proj; 32 in 4 of 40 layers, inputs of self_attn.o_proj" in hybrid


@pytest.mark.parametrize(
    ("model_type", "architecture", "message"),
    [
        ("gemma4_text", "Gemma4ForCausalLM", "refused     its layers take inputs of their own"),
        ("kimi_k3", "KimiK3ForConditionalGeneration", "engine      refused: vLLM computes it with fused kernels"),
        ("someones", "SomeonesForCausalLM", "no row: discovery looks whether a row fits"),
    ],
)
def test_what_is_refused_is_told_with_the_reason(
    tmp_path: Path, model_type: str, architecture: str, message: str
) -> None:
    assert message in describe(write(tmp_path / "model", model_type=model_type, architectures=[architecture]))


def test_each_architecture_that_vllm_has_fused_kernels_for_is_known_to_have_them() -> None:
    vllm = find_spec("vllm")
    assert vllm is not None
    assert vllm.origin is not None
    registry = (Path(vllm.origin).parent / "model_executor" / "models" / "registry.py").read_text()
    fused, others = (
        {name for name in re.findall(rf'"(\w+)":\s*\(\s*"{module}', registry) if "DSpark" not in name}
        for module in (r"vllm\.models\.", r"\w+\"")
    )
    assert len(fused) > 10
    assert len(others) > 100
    assert all(map(FUSED.match, fused))
    assert not any(map(FUSED.match, others))


def test_the_command_prints_the_table_or_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert capsys.readouterr().out == table() + "\n"
    folder = write(tmp_path / "model", model_type="llama", num_hidden_layers=2)
    assert main(["models", folder]) == 2
    assert "the configuration has no num_attention_heads" in capsys.readouterr().err
    assert main(["models", str(tmp_path / "nowhere" / "at" / "all")]) == 2
