"""Where an engine's replies think and call tools: its parsers' markers, and the automaton over its tokens.

The markers are found when an engine is configured, and travel in its settings; each process that needs the automaton
builds it, once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emovllm.engine import parsers
from emovllm.engine.settings import settings_of
from emovllm.errors import Unsupported
from emovllm.phases import Automaton, Markers, Phase

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# What a token is decoded behind, as tokenizers drop the space that begins a text.
_BEFORE = "a"


def configured(vllm_config: VllmConfig, tool_parser: str | None) -> dict[Phase, Markers]:
    """Of an engine's parsers; none where it has none. Raises: Unsupported."""
    reasoning = reasoning_parser_of(vllm_config)
    if not reasoning and not tool_parser:
        return {}
    if vllm_config.model_config.skip_tokenizer_init:
        # Some models bring a reasoning parser that nobody asked for. What a phase is needed for is refused.
        return {}
    return parsers.markers_of(reasoning, tool_parser, tokenizer_of(vllm_config))


def reasoning_parser_of(vllm_config: VllmConfig) -> str | None:
    """vLLM's name of the engine's reasoning parser; None without one. A plugin's parsers are registered."""
    config = vllm_config.structured_outputs_config
    if plugin := getattr(config, "reasoning_parser_plugin", ""):
        from vllm.reasoning import ReasoningParserManager

        ReasoningParserManager.import_reasoning_parser(plugin)
    return getattr(config, "reasoning_parser", "") or getattr(vllm_config, "reasoning_parser", "") or None


def tokenizer_of(vllm_config: VllmConfig) -> Any:
    """vLLM's own, which is loaded once in a process. Raises: Unsupported."""
    from vllm.tokenizers import cached_tokenizer_from_config

    tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
    if tokenizer is None:
        raise Unsupported("a reasoning or tool parser needs a tokenizer: drop --skip-tokenizer-init")
    return tokenizer


def automaton_of(vllm_config: VllmConfig) -> Automaton | None:
    """Over the engine's tokens; None where its settings have no markers. Built once for each tokenizer and markers."""
    settings = settings_of(vllm_config)
    if settings is None or not settings.markers:
        return None
    return _automaton(tokenizer_of(vllm_config), tuple(settings.markers.items()))


@functools.lru_cache(maxsize=4)
def _automaton(tokenizer: Any, markers: tuple[tuple[Phase, Markers], ...]) -> Automaton:
    return Automaton(pieces(tokenizer), dict(markers))


def pieces(tokenizer: Any) -> list[str]:
    """Each token's text, by its number; special tokens' too. Of a part of a character, what the tokenizer shows."""
    size = max(tokenizer.get_vocab().values()) + 1
    before = tokenizer.encode(_BEFORE, add_special_tokens=False)
    shown = _decoded(tokenizer, [before])[0]
    texts = _decoded(tokenizer, [[*before, token] for token in range(size)])
    return [text.removeprefix(shown) for text in texts]


def _decoded(tokenizer: Any, sequences: Sequence[Sequence[int]]) -> list[str]:
    """Special tokens are kept. Hugging Face's fast tokenizers decode many at once."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return list(backend.decode_batch(sequences, skip_special_tokens=False))
    return [tokenizer.decode(list(tokens), skip_special_tokens=False) for tokens in sequences]
