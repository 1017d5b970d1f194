"""Names of the two projections per decoder layer whose inputs a circuit acts on."""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["attn", "mlp"]

# Module paths inside a decoder layer. The first of each is what Llama, Mistral, Qwen2/3, Gemma 2/3, Phi-3, Granite and
# OLMo use, in Transformers and in vLLM alike.
SITE_NAMES: dict[Kind, tuple[str, ...]] = {
    "attn": (
        "self_attn.o_proj",
        "self_attn.out_proj",  # OPT
        "self_attn.dense",  # Phi
        "self_attention.dense",  # Falcon, Bloom
        "attention.dense",  # GPT-NeoX
        "attn.c_proj",  # GPT-2
        "attn.out_proj",  # GPT-J
    ),
    "mlp": (
        "mlp.down_proj",
        "mlp.fc2",  # Phi
        "mlp.dense_4h_to_h",  # Falcon, Bloom, GPT-NeoX
        "mlp.c_proj",  # GPT-2, StarCoder2
        "mlp.fc_out",  # GPT-J
        "fc2",  # OPT
    ),
}

_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.(.+)$")


def parse_site(module_name: str) -> tuple[Kind, int] | None:
    """The (kind, layer) of a module by its dotted name, or None if it is no site.

    vLLM's LoRA wrappers hold the projection as `base_layer`.
    """
    match = _LAYER.search(module_name.removesuffix(".base_layer"))
    if match is None:
        return None
    for kind, names in SITE_NAMES.items():
        if match[2] in names:
            return kind, int(match[1])
    return None


def layer_of(module_name: str) -> str | None:
    """The dotted name of the decoder layer that a site is in, or None for a module that is no site."""
    name = module_name.removesuffix(".base_layer")
    match = _LAYER.search(name)
    return name[: match.start(2) - 1] if match and parse_site(name) else None
