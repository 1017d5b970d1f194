"""Tiny random models on disk, of shapes that vLLM's CPU attention takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "bos_token_id": 0,
}


def tiny_model(folder: Path, seed: int = 0, **changes: Any) -> str:
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**{**TINY, **changes})).save_pretrained(folder)
    return str(folder)
