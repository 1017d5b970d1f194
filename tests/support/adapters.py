"""Random LoRA adapters, and the models with them merged."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

RANK = 4
ALPHA = 8
LAYERS = range(3)
# What each adapter changes. The last leaves both of a circuit's projections alone.
ADAPTERS = {
    "both": ("self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"),
    "attention": ("self_attn.q_proj", "self_attn.o_proj"),
    "neurons": ("mlp.down_proj",),
    "neither": ("self_attn.v_proj", "mlp.gate_proj"),
}


class Adapter:
    """A random adapter of `model`, as PEFT saves one, and the model with it merged."""

    def __init__(self, model: str, name: str, root: Path) -> None:
        torch.manual_seed(list(ADAPTERS).index(name))
        self.path = str(root / name)
        self.merged = str(root / f"{name}-merged")
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        weights = {}
        for path in (f"model.layers.{layer}.{module}" for layer in LAYERS for module in ADAPTERS[name]):
            projection = loaded.get_submodule(path)
            a = torch.randn(RANK, projection.in_features) * 0.2
            b = torch.randn(projection.out_features, RANK) * 0.2
            weights[f"base_model.model.{path}.lora_A.weight"] = a
            weights[f"base_model.model.{path}.lora_B.weight"] = b
            projection.weight.data += ALPHA / RANK * b @ a
        Path(self.path).mkdir()
        save_file(weights, Path(self.path) / "adapter_model.safetensors")
        modules = sorted({module.split(".")[1] for module in ADAPTERS[name]})
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": modules, "bias": "none"}
        (Path(self.path) / "adapter_config.json").write_text(json.dumps(config))
        loaded.save_pretrained(self.merged)
