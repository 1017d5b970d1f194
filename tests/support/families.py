"""A tiny random model of each family that Transformers and vLLM both know, of shapes that vLLM takes on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

# By the names that most configurations take.
_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    # Wide enough that every sublayer has a say in the next token.
    "initializer_range": 0.2,
}
_HEAD = {"head_dim": 32}
_ALL_HEADS = {"num_key_value_heads": 2}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}

# Changes of the common configuration, by Transformers' model_type; None drops a key.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _HEAD,
    "mistral": {**_HEAD, "sliding_window": 16},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": _HEAD,
    "gemma2": {**_HEAD, **_WINDOWS, "query_pre_attn_scalar": 32},
    "gemma3_text": {**_HEAD, **_WINDOWS, "query_pre_attn_scalar": 32},
    "phi3": {"sliding_window": None},
    "granite": {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "olmo2": {},
    "olmo3": _WINDOWS,
    "phi": {**_ALL_HEADS, "partial_rotary_factor": 0.5},
    "stablelm": {},
    "starcoder2": {"use_bias": True},
    "gpt_neox": {"num_key_value_heads": None, "rotary_pct": 0.5},
    "gpt2": {
        "hidden_size": None,
        "intermediate_size": None,
        "num_hidden_layers": None,
        "num_attention_heads": None,
        "num_key_value_heads": None,
        "max_position_embeddings": None,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 128,
        "n_inner": None,
    },
    "gptj": {
        "hidden_size": None,
        "intermediate_size": None,
        "num_hidden_layers": None,
        "num_attention_heads": None,
        "num_key_value_heads": None,
        "max_position_embeddings": None,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 128,
        "rotary_dim": 16,
        "tie_word_embeddings": False,
    },
    "opt": {
        "intermediate_size": None,
        "num_key_value_heads": None,
        "ffn_dim": 96,
        "word_embed_proj_dim": 64,
        "init_std": 0.2,
    },
    "falcon": {
        "intermediate_size": None,
        "num_key_value_heads": None,
        "max_position_embeddings": None,
        "new_decoder_architecture": False,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
    },
    "bloom": {
        "intermediate_size": None,
        "num_hidden_layers": None,
        "num_attention_heads": None,
        "num_key_value_heads": None,
        "max_position_embeddings": None,
        "n_layer": 2,
        "n_head": 2,
        "initializer_range": 0.5,
    },
    "mixtral": {**_HEAD, **_EXPERTS},
    # Its MLPs have a name that our table lacks.
    "lfm2": {**_ALL_HEADS, "layer_types": ["full_attention"] * 2, "block_dim": 64, "block_auto_adjust_ff_dim": False},
    "qwen3_moe": {**_HEAD, **_EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
}


def family_model(family: str, folder: Path, seed: int = 0) -> str:
    changed = {**_COMMON, **FAMILIES[family]}
    config = AutoConfig.for_model(family, **{key: value for key, value in changed.items() if value is not None})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        if config.tie_word_embeddings:
            # A token's own embedding would always win.
            model.get_input_embeddings().weight.mul_(0.1)
        for parameter in model.parameters():
            # Biases are made 0 and norms 1, which hides where they are added or multiplied.
            if parameter.ndim == 1:
                parameter += torch.randn_like(parameter) * 0.1
    model.save_pretrained(folder)
    return str(folder)
