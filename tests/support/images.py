"""Random images, and a tiny model of text and images that looks at them: LLaVA, which needs no torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIDE, PATCH = 16, 8
# An image's place in a prompt, and how many tokens it becomes.
TOKEN, TOKENS = 120, (SIDE // PATCH) ** 2


def image(seed: int) -> Any:
    """RGB."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def tiny_llava(folder: Path) -> str:
    """In float32, with what prepares its inputs."""
    import torch
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from support.models import TINY

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        initializer_range=0.5,
    )
    text = LlamaConfig(**TINY, initializer_range=0.2)
    network = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=TOKEN)
    )
    network.save_pretrained(folder)
    # Published checkpoints, which vLLM reads, name the tower's weights as Transformers did before its version 5.
    weights = load_file(folder / "model.safetensors")
    old = {name.replace("vision_tower.", "vision_tower.vision_model."): weight for name, weight in weights.items()}
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    words = {"<image>" if number == TOKEN else str(number): number for number in range(TINY["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="2")))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)
    LlavaProcessor(processor, tokenizer, PATCH, "default", num_additional_image_tokens=1).save_pretrained(folder)
    return str(folder)
