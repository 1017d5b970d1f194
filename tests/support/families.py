"""A tiny random model of each row in the table of architectures, of shapes that vLLM takes on a CPU."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

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
_LAST_HAS_EXPERTS = {"decoder_sparse_step": 2, "mlp_only_layers": []}
_ROUTED = {"topk_method": "noaux_tc", "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
_LINEAR = {
    "pattern": ("linear_attention", "full_attention"),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}

# What the widths of MLPs are called elsewhere.
_MLP_WIDTH = {"gpt2": "n_inner", "gptj": "n_inner", "opt": "ffn_dim", "falcon": "ffn_hidden_size"}

# Changes of the common configuration, one for each row of the table of architectures; None drops a key.
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
    "exaone4": {**_WINDOWS, "sliding_window_pattern": None},
    "glm4": {**_HEAD, "partial_rotary_factor": 0.5},
    "smollm3": {"no_rope_layer_interval": 2},
    "seed_oss": {**_HEAD, "attention_bias": True},
    "ernie4_5": _HEAD,
    "hunyuan_v1_dense": _HEAD,
    "apertus": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "cohere": {"logit_scale": 0.5},
    # vLLM's windows are one token wider than those of Transformers.
    "cohere2": {**_HEAD, **_WINDOWS, "sliding_window": 128, "logit_scale": 0.5},
    "phi": {**_ALL_HEADS, "partial_rotary_factor": 0.5},
    "stablelm": {},
    "starcoder2": {"use_bias": True},
    "gpt_neox": {"num_key_value_heads": None, "rotary_pct": 0.5},
    "gpt2": {"num_key_value_heads": None},
    "gptj": {"num_key_value_heads": None, "rotary_dim": 16, "tie_word_embeddings": False},
    "opt": {"num_key_value_heads": None, "init_std": 0.2},
    "falcon": {
        # vLLM knows no other width of its MLPs than four times the hidden size.
        "intermediate_size": 256,
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
        "num_key_value_heads": None,
        "max_position_embeddings": None,
        "initializer_range": 0.5,
    },
    "mixtral": {**_HEAD, **_EXPERTS},
    "qwen2_moe": {**_HEAD, **_EXPERTS, **_LAST_HAS_EXPERTS, "shared_expert_intermediate_size": 48},
    "qwen3_moe": {**_HEAD, **_EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
    "olmoe": {**_ALL_HEADS, **_EXPERTS},
    "glm4_moe": {**_HEAD, **_EXPERTS, **_ROUTED, "first_k_dense_replace": 1},
    "deepseek_v3": {
        **_EXPERTS,
        **_ROUTED,
        **_ALL_HEADS,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "head_dim": None,
    },
    "gpt_oss": {**_HEAD, **_EXPERTS, **_WINDOWS},
    "llama4_text": {
        **_HEAD,
        **_EXPERTS,
        "intermediate_size_mlp": 96,
        "interleave_moe_layer_step": 2,
        "num_experts_per_tok": 1,
    },
    "qwen3_next": {**_HEAD, **_EXPERTS, **_LAST_HAS_EXPERTS, **_LINEAR, "shared_expert_intermediate_size": 48},
    "qwen3_5_text": {**_HEAD, **_LINEAR},
    "granitemoehybrid": {
        "num_local_experts": 0,
        "pattern": ("mamba", "attention"),
        "shared_intermediate_size": 96,
        "residual_multiplier": 0.5,
        "mamba_n_heads": 4,
        "mamba_d_head": "auto",
        "mamba_expand": 2,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
    },
    "lfm2": {
        **_ALL_HEADS,
        "pattern": ("conv", "full_attention"),
        "block_dim": 64,
        "block_auto_adjust_ff_dim": False,
        "conv_dim": 64,
        "conv_dim_out": 64,
    },
}
# The same families by other settings, which change how a layer is built: (model_type, changes).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox_sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "stablelm_parallel": ("stablelm", {"use_parallel_residual": True}),
    "falcon_sequential": ("falcon", {"parallel_attn": False}),
    "falcon_alibi": ("falcon", {"alibi": True}),
    "falcon_new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
}
# A family that the table has no row for, and that is not known to be built otherwise.
UNKNOWN: dict[str, dict[str, Any]] = {
    "gemma": _HEAD,
}


def family_config(name: str, **shape: Any) -> PreTrainedConfig:
    """The tiny configuration of a family or variant; `shape` changes what the family takes of it, None drops a key."""
    model_type, variant = VARIANTS.get(name, (name, {}))
    family = {**(FAMILIES | UNKNOWN)[model_type], **variant}
    usual = {**_COMMON, **family}
    taken = {key: value for key, value in shape.items() if usual.get(key) is not None}
    names = {
        **CONFIG_MAPPING[model_type].attribute_map,
        "intermediate_size": _MLP_WIDTH.get(model_type, "intermediate_size"),
    }
    values = {key: value for key, value in {**usual, **taken}.items() if value is not None}
    if "pattern" in values:
        types = itertools.cycle(values.pop("pattern"))
        values["layer_types"] = list(itertools.islice(types, values["num_hidden_layers"]))
    if model_type == "deepseek_v3":
        # Its latent attention has keys and values for every head.
        values["num_key_value_heads"] = values["num_attention_heads"]
    return AutoConfig.for_model(model_type, **{names.get(key, key): value for key, value in values.items()})


def family_network(name: str, seed: int = 0, **shape: Any) -> PreTrainedModel:
    """A random model of `family_config`, float32, in evaluation mode."""
    config = family_config(name, **shape)
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
    return model.eval()


def family_model(name: str, folder: Path, seed: int = 0) -> str:
    family_network(name, seed).save_pretrained(folder)
    return str(folder)
