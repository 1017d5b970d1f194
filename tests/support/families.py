"""A tiny random model of each row in the table of architectures, of shapes that vLLM takes on a CPU."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

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
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "head_dim": None,
}
_GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": "auto", "mamba_expand": 2, "mamba_d_state": 16, "mamba_n_groups": 1}
_LINEAR = {
    "pattern": ("linear_attention", "full_attention"),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
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
    "ministral3": _HEAD,
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": _HEAD,
    "gemma2": {**_HEAD, **_WINDOWS, "query_pre_attn_scalar": 32},
    "gemma3_text": {**_HEAD, **_WINDOWS, "query_pre_attn_scalar": 32},
    "phi3": {"sliding_window": None},
    "granite": _GRANITE,
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
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.0},
    "minimax_m2": {**_HEAD, **_EXPERTS, "rotary_dim": 16, "scoring_func": "sigmoid", "use_routing_bias": True},
    "granitemoe": {**_GRANITE, **_EXPERTS},
    "mixtral": {**_HEAD, **_EXPERTS},
    "qwen2_moe": {**_HEAD, **_EXPERTS, **_LAST_HAS_EXPERTS, "shared_expert_intermediate_size": 48},
    "qwen3_moe": {**_HEAD, **_EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
    "olmoe": {**_ALL_HEADS, **_EXPERTS},
    "glm4_moe": {**_HEAD, **_EXPERTS, **_ROUTED, "first_k_dense_replace": 1},
    "deepseek_v3": {
        **_EXPERTS,
        **_ROUTED,
        **_ALL_HEADS,
        **_LATENT,
        "first_k_dense_replace": 1,
    },
    "deepseek_v2": {
        **_EXPERTS,
        **_ROUTED,
        **_ALL_HEADS,
        **_LATENT,
        "topk_method": "greedy",
        "first_k_dense_replace": 1,
    },
    "glm4_moe_lite": {**_EXPERTS, **_ROUTED, **_ALL_HEADS, **_LATENT, "first_k_dense_replace": 1},
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
    "qwen2_vl_text": {},
    "qwen2_5_vl_text": {},
    "qwen3_vl_text": _HEAD,
    "qwen3_vl_moe_text": {**_HEAD, **_EXPERTS, **_LAST_HAS_EXPERTS, "norm_topk_prob": True},
    "qwen3_5_moe_text": {**_HEAD, **_EXPERTS, **_LINEAR, "shared_expert_intermediate_size": 48},
    "granitemoehybrid": {
        "num_local_experts": 0,
        "pattern": ("mamba", "attention"),
        "shared_intermediate_size": 96,
        "residual_multiplier": 0.5,
        **_MAMBA,
    },
    "granitemoeshared": {**_GRANITE, **_EXPERTS, "shared_intermediate_size": 96},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "lfm2": {
        **_ALL_HEADS,
        "pattern": ("conv", "full_attention"),
        "block_dim": 64,
        "block_auto_adjust_ff_dim": False,
        "conv_dim": 64,
        "conv_dim_out": 64,
    },
    "lfm2_moe": {**_ALL_HEADS, **_EXPERTS, "pattern": ("full_attention", "conv"), "num_dense_layers": 1},
    "falcon_h1": {
        **_HEAD,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": "auto",
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mlp_multipliers": [0.8, 0.6],
        "ssm_multipliers": [0.9, 0.8, 1.1, 1.2, 0.7],
        "attention_in_multiplier": 0.9,
        "attention_out_multiplier": 0.7,
        "ssm_in_multiplier": 1.2,
        "ssm_out_multiplier": 0.5,
        "key_multiplier": 0.6,
        "embedding_multiplier": 3.0,
        "lm_head_multiplier": 0.7,
    },
    "nemotron_h": {
        **_HEAD,
        **_EXPERTS,
        **_ROUTED,
        "num_hidden_layers": 4,
        "pattern": ("linear_attention", "mlp", "full_attention", "mlp"),
        "moe_shared_expert_intermediate_size": 48,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "ssm_state_size": 16,
        "n_groups": 1,
    },
}
# The same families by other settings, which change how a layer is built: (model_type, changes).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox_sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "stablelm_parallel": ("stablelm", {"use_parallel_residual": True}),
    "falcon_sequential": ("falcon", {"parallel_attn": False}),
    "falcon_alibi": ("falcon", {"alibi": True}),
    "granitemoehybrid_experts": ("granitemoehybrid", _EXPERTS),
    # vLLM has its experts on no CPU.
    "nemotron_h_moe": ("nemotron_h", {"pattern": ("linear_attention", "mlp", "full_attention", "moe")}),
    "falcon_new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
}
_TEXT_WIDTH: Any = object()
_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIGLIP = {**_TOWER, "image_size": 16, "patch_size": 8}
_QWEN = {"depth": 2, "num_heads": 2, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": _TEXT_WIDTH}
_QWEN3 = {**_QWEN, "num_position_embeddings": 16}
# Models of text and images: the language model in each, its tower, and what it takes beside them.
WRAPPERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": ("gemma3_text", _SIGLIP, {"mm_tokens_per_image": 4}),
    "mistral3": ("mistral", {**_SIGLIP, "model_type": "pixtral", "head_dim": 8}, {}),
    "qwen3_5": ("qwen3_5_text", _QWEN3, {}),
    "qwen2_vl": (
        "qwen2_vl_text",
        {"depth": 2, "num_heads": 2, "embed_dim": 16, "mlp_ratio": 2, "hidden_size": _TEXT_WIDTH},
        {},
    ),
    "qwen2_5_vl": ("qwen2_5_vl_text", {**_QWEN, "fullatt_block_indexes": [1]}, {}),
    "qwen3_vl": ("qwen3_vl_text", {**_QWEN3, "deepstack_visual_indexes": [1]}, {}),
    "qwen3_vl_moe": ("qwen3_vl_moe_text", {**_QWEN3, "deepstack_visual_indexes": [1]}, {}),
}
# Language models that Transformers has in such a model alone.
LANGUAGE_MODELS_OF = {
    text: name for name, (text, _, _) in WRAPPERS.items() if text.startswith(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"))
}
# Families that the table has no row for, and that one of its rows fits.
UNKNOWN: dict[str, dict[str, Any]] = {
    "gemma": _HEAD,
    "glm": {**_HEAD, "pad_token_id": 0},
    "olmo": {},
    "nemotron": {"head_dim": 32},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64},
    "hunyuan_v1_moe": {**_HEAD, "num_experts": 4, "moe_topk": 2},
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
    if "kv_lora_rank" in values:
        # Latent attention has keys and values for every head.
        values["num_key_value_heads"] = values["num_attention_heads"]
    if model_type in LANGUAGE_MODELS_OF:
        # A position has three parts, each with some of the frequencies.
        half = values.get("head_dim", values["hidden_size"] // values["num_attention_heads"]) // 2
        section = [half - 2 * (half // 4), half // 4, half // 4]
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}
    return AutoConfig.for_model(model_type, **{names.get(key, key): value for key, value in values.items()})


def family_network(name: str, seed: int = 0, **shape: Any) -> PreTrainedModel:
    """A random model of `family_config`, float32, in evaluation mode."""
    config = family_config(name, **shape)
    if name in LANGUAGE_MODELS_OF:
        return _random(AutoModelForImageTextToText, wrapper_config(LANGUAGE_MODELS_OF[name], config), seed)
    return _random(AutoModelForCausalLM, config, seed)


def wrapper_network(name: str, seed: int = 0, **shape: Any) -> PreTrainedModel:
    """The same of a model of text and images, around the language model of its family."""
    text = family_config(WRAPPERS[name][0], **shape)
    return _random(AutoModelForImageTextToText, wrapper_config(name, text), seed)


def wrapper_config(name: str, text: PreTrainedConfig) -> PreTrainedConfig:
    _, tower, more = WRAPPERS[name]
    wide = {key: text.hidden_size for key, value in tower.items() if value is _TEXT_WIDTH}
    return AutoConfig.for_model(name, text_config=text, vision_config={**tower, **wide}, **more)


def _random(kind: Any, config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    model: PreTrainedModel = kind.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
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
