"""How large a cache each engine gets, where several share one GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GIB = 2**30
# Of each engine beside weights and cache: CUDA itself, graphs, activations of 8192 tokens.
_BESIDE = 3.5 * GIB
# Of the card, left alone.
_SPARE = 3 * GIB
# Fewer tokens than a prefill and its neighbours need are no room.
_LEAST_TOKENS = 16384
# More than any measurement fills.
_LARGEST_CACHE = 24 * GIB
_BYTES = 2  # of a number in bfloat16


@dataclass(frozen=True)
class Room:
    """Of each engine: bytes of its cache, how many tokens it holds, and its whole share of the card's memory."""

    cache: int
    tokens: int
    share: float

    def arguments(self) -> dict[str, Any]:
        """Of `vllm.LLM`. The share is what must be free when an engine starts; the cache is not made to fill it."""
        return {"kv_cache_memory_bytes": self.cache, "gpu_memory_utilization": round(0.9 * self.share, 3)}


def room(config: dict[str, Any], engines: int, free: int, total: int) -> Room | None:
    """For each of so many engines at once of a shape, in bfloat16; None where they do not fit.

    free, total: bytes of the card's memory.
    """
    weights = _BYTES * parameters(config)
    cache = min((free - _SPARE) / engines - weights - _BESIDE, _LARGEST_CACHE)
    tokens = int(cache // token_bytes(config))
    if tokens < _LEAST_TOKENS:
        return None
    return Room(int(cache), tokens, (weights + cache + _BESIDE) / total)


def token_bytes(config: dict[str, Any]) -> int:
    """Of a token's keys and values."""
    return int(2 * _BYTES * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"])


def parameters(config: dict[str, Any]) -> int:
    """Of a Llama of this shape."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"] + config["num_key_value_heads"]
    layer = 2 * hidden * heads * config["head_dim"] + 3 * hidden * config["intermediate_size"] + 2 * hidden
    embeddings = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    return int(config["num_hidden_layers"] * layer + embeddings + hidden)
