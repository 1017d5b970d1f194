"""Tiny random models on disk, of shapes that vLLM's CPU attention takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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


def tiny_chat_model(folder: Path, seed: int = 0, **changes: Any) -> str:
    """A tiny model with a tokenizer, whose tokens are ASCII characters: what it writes is what it generated, token by
    token."""
    return tiny_model(folder, seed, **{"vocab_size": add_tokenizer(folder), **changes})


def add_tokenizer(folder: Path) -> int:
    """Puts the tokenizer of ASCII characters, with a chat template, into a model's folder. Returns: how many tokens it
    has."""
    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2} | {character: 3 + i for i, character in enumerate(characters)}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[], unk_token="<unk>", fuse_unk=False))
    tokenizer.decoder = Fuse()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
    fast.save_pretrained(folder)
    return len(vocabulary)
