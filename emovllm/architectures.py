"""What is known of each family of models, decided once: the engine, discovery, the tests and the docs read this table.

To add a family, add its row here and a tiny configuration of it in tests/support/families.py; its tests follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from emovllm.family import Family, Kind, Mixer


def _normed(
    model_type: str,
    before_mlp: str,
    attn_norm: str = "post_attention_layernorm",
    mlp_norm: str = "post_feedforward_layernorm",
    **more: Any,
) -> Family:
    return Family(model_type, before_mlp=before_mlp, attn_norm=attn_norm, mlp_norm=mlp_norm, **more)


_LFM2: dict[str, Any] = {
    "attn": "self_attn.out_proj",
    "mlp": "feed_forward.w2",
    "mixers": (Mixer("conv.out_proj", in_vllm="short_conv.out_proj"),),
    "before_mlp": "ffn_norm",
}
_DELTA_NET = Mixer("linear_attn.out_proj", "linear_num_value_heads")
_MAMBA = Mixer("mamba.out_proj", "mamba_n_heads")
_SHARED = "mlp.shared_experts.down_proj"

# What blocks of experts call the router.
ROUTERS = ("gate", "router")

FAMILIES: tuple[Family, ...] = (
    Family("llama", name="Llama 2, 3"),
    Family("mistral", name="Mistral, Ministral"),
    Family("ministral3", name="Ministral 3", served="once"),
    Family("qwen2", name="Qwen 2, 2.5"),
    Family("qwen3", name="Qwen 3"),
    _normed("gemma2", "pre_feedforward_layernorm", name="Gemma 2"),
    _normed("gemma3_text", "pre_feedforward_layernorm", name="Gemma 3"),
    Family("phi3", name="Phi 3, 4"),
    Family("granite", scale="residual_multiplier", name="Granite 3"),
    _normed("olmo2", "mlp", name="OLMo 2"),
    _normed("olmo3", "mlp", name="OLMo 3"),
    _normed("exaone4", "mlp", name="EXAONE 4", served="once"),
    _normed("glm4", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm", name="GLM 4 (dense)"),
    Family("smollm3", name="SmolLM 3"),
    Family("seed_oss", name="Seed-OSS", served="once"),
    Family("ernie4_5", name="ERNIE 4.5 (dense)", served="once"),
    Family("hunyuan_v1_dense", name="Hunyuan (dense)", served="once"),
    Family("apertus", before_mlp="feedforward_layernorm", name="Apertus"),
    Family("cohere", parallel=True, name="Command R", served="once"),
    Family("cohere2", parallel=True, name="Command R7B, A"),
    Family("phi", attn="self_attn.dense", mlp="mlp.fc2", parallel=True, name="Phi 1, 2"),
    Family("stablelm", parallel=("use_parallel_residual",), name="StableLM"),
    Family("starcoder2", mlp="mlp.c_proj", name="StarCoder 2"),
    Family(
        "gpt_neox",
        attn="attention.dense",
        mlp="mlp.dense_4h_to_h",
        parallel=("use_parallel_residual",),
        name="GPT-NeoX, Pythia",
    ),
    Family("gpt2", attn="attn.c_proj", mlp="mlp.c_proj", before_mlp="ln_2", name="GPT-2"),
    Family("gptj", attn="attn.out_proj", mlp="mlp.fc_out", parallel=True, name="GPT-J"),
    Family(
        "opt",
        attn="self_attn.out_proj",
        mlp="fc2",
        before_mlp="final_layer_norm",
        name="OPT",
        not_discovered="its MLP sees the tokens of all sequences in one row",
    ),
    Family(
        "falcon",
        attn="self_attention.dense",
        mlp="mlp.dense_4h_to_h",
        parallel=("parallel_attn", "new_decoder_architecture"),
        alibi=("alibi",),
        name="Falcon",
    ),
    Family("bloom", attn="self_attention.dense", mlp="mlp.dense_4h_to_h", alibi=True, name="Bloom"),
    Family("mixtral", mlp=None, experts="mlp", experts_in_vllm="block_sparse_moe", name="Mixtral"),
    Family("phimoe", mlp=None, experts="mlp", experts_in_vllm="block_sparse_moe", name="Phi 3.5 MoE", served="sites"),
    Family(
        "minimax_m2", mlp=None, experts="mlp", experts_in_vllm="block_sparse_moe", name="MiniMax M2", served="sites"
    ),
    Family(
        "granitemoe",
        mlp=None,
        experts="block_sparse_moe",
        scale="residual_multiplier",
        name="Granite 3 MoE",
        served="once",
    ),
    # Their shared expert is weighed by a gate of its own.
    Family("qwen2_moe", experts="mlp", name="Qwen 2 MoE"),
    Family("qwen3_moe", experts="mlp", name="Qwen 3 MoE"),
    Family("olmoe", mlp=None, experts="mlp", name="OLMoE"),
    Family("glm4_moe", shared=_SHARED, experts="mlp", name="GLM 4.5 to 4.7"),
    Family("glm4_moe_lite", shared=_SHARED, experts="mlp", name="GLM 4.7 Flash", served="sites"),
    Family("deepseek_v2", shared=_SHARED, experts="mlp", name="DeepSeek V2", served="sites"),
    Family("deepseek_v3", shared=_SHARED, experts="mlp", name="DeepSeek V3, R1", served="sites"),
    Family("gpt_oss", mlp=None, experts="mlp", attn_in_vllm="attn.o_proj", name="gpt-oss"),
    Family(
        "llama4_text",
        mlp="feed_forward.down_proj",
        experts="feed_forward",
        no_experts="they weigh what experts are given, not what they give, so that a neuron's write is no linear share",
        name="Llama 4",
    ),
    Family("qwen3_next", experts="mlp", mixers=(_DELTA_NET,), name="Qwen 3 Next", served="sites"),
    Family("qwen3_5_text", mixers=(_DELTA_NET,), name="Qwen 3.5, 3.6 (dense)", served="sites"),
    Family("qwen3_5_moe_text", mlp=None, experts="mlp", mixers=(_DELTA_NET,), name="Qwen 3.5 MoE", served="sites"),
    Family("qwen2_vl_text", name="Qwen 2 VL", served="once"),
    Family("qwen2_5_vl_text", name="Qwen 2.5 VL", served="once"),
    Family("qwen3_vl_text", name="Qwen 3 VL", served="once"),
    Family("qwen3_vl_moe_text", experts="mlp", name="Qwen 3 VL MoE", served="sites"),
    Family(
        "granitemoehybrid",
        mlp="shared_mlp.output_linear",
        beside="block_sparse_moe",
        mixers=(_MAMBA,),
        scale="residual_multiplier",
        name="Granite 4 (hybrid)",
    ),
    Family(
        "granitemoeshared",
        mlp="shared_mlp.output_linear",
        beside="block_sparse_moe",
        scale="residual_multiplier",
        name="Granite MoE, shared",
        served="once",
    ),
    Family(
        "bamba",
        mlp="feed_forward.down_proj",
        mixers=(_MAMBA,),
        before_mlp="pre_ff_layernorm",
        name="Bamba",
        served="none",
    ),
    Family("lfm2", **_LFM2, name="LFM 2", served="sites"),
    Family("lfm2_moe", **_LFM2, experts="feed_forward", name="LFM 2 MoE", served="sites"),
    Family(
        "falcon_h1",
        mlp="feed_forward.down_proj",
        before_mlp="pre_ff_layernorm",
        beside_attn=("mamba", "ssm_out_multiplier"),
        scale=("attention_out_multiplier", "mlp_multipliers.1"),
        name="Falcon H1",
    ),
    Family(
        "nemotron_h",
        attn="mixer.o_proj",
        mlp="mixer.down_proj",
        shared="mixer.shared_experts.down_proj",
        experts="mixer",
        mixers=(Mixer("mixer.out_proj", "mamba_num_heads"),),
        alone=True,
        no_experts="they are not gated, and some models project what they write once more",
        name="Nemotron H, 3",
    ),
)

# What is known not to fit the table: its name, and why.
REFUSED = {
    "gemma3n_text": ("Gemma 3n", "its layers read and write several residual streams"),
    "gemma4_text": ("Gemma 4", "its layers take inputs of their own beside the residual, and share keys and values"),
    "jamba": ("Jamba", "Transformers forgets the state of its layers between one part of a prompt and the next"),
    "zamba2": ("Zamba 2", "its attention is shared by several layers"),
    "olmo_hybrid": ("OLMo Hybrid", "attention norms what it writes, linear attention what it reads"),
}

_BY_TYPE = {family.model_type: family for family in FAMILIES}

# Modules that no circuit acts on, whatever their names: towers of other modalities, what projects their output, heads
# that predict further tokens.
NO_SITES = frozenset(
    {
        "apm",
        "audio_encoder",
        "audio_tower",
        "embed_audio",
        "embed_vision",
        "mtp",
        "multi_modal_projector",
        "vision_backbone",
        "vision_encoder",
        "vision_model",
        "vision_tower",
        "visual",
        "visual_tokenizer",
        "vpm",
        "whisper_encoder",
    }
)

_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.(.+)$")


def candidates(model_type: str) -> tuple[Family, ...]:
    """The row of a model, or every kind of row there is for a model that the table lacks: many are built as Llama."""
    return (_BY_TYPE[model_type],) if model_type in _BY_TYPE else FAMILIES


def parse_site(module_name: str, families: Iterable[Family] = FAMILIES) -> tuple[Kind, int] | None:
    """The (kind, layer) of a module by its dotted name in a whole model, or None if it is no site.

    vLLM's LoRA wrappers hold the projection as `base_layer`.
    """
    layer, place = _in_layer(module_name.removesuffix(".base_layer"))
    for family in families:
        for kind, paths in family.projections.items():
            if place in paths:
                return kind, layer
    return None


def parse_experts(module_name: str, families: Iterable[Family] = FAMILIES) -> int | None:
    """The layer whose block of experts a module is by its dotted name in a whole model, or None if it is none.

    The MLP of a layer without experts may have that name too: it has no submodule `experts`.
    """
    layer, place = _in_layer(module_name)
    paths = {path for family in families for path in (family.experts, family.experts_in_vllm)}
    return layer if place and place in paths else None


def _in_layer(module_name: str) -> tuple[int, str]:
    """The layer that a module is in, and its path there; an empty one outside of the language model's layers."""
    match = _LAYER.search(module_name)
    if match is None or not NO_SITES.isdisjoint(module_name[: match.start(1)].split(".")):
        return -1, ""
    return int(match[1]), match[2]


def layer_of(module_name: str) -> str | None:
    """The dotted name of the decoder layer that a site is in, or None for a module that is no site."""
    name = module_name.removesuffix(".base_layer")
    match = _LAYER.search(name)
    return name[: match.start(2) - 1] if match and parse_site(name) else None
