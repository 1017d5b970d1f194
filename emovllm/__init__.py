"""Emotion circuits of language models, served by vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emovllm.lazy import lazily

if TYPE_CHECKING:
    from emovllm.circuit import Circuit as Circuit
    from emovllm.circuit_files import load_circuit as load_circuit
    from emovllm.circuit_files import save_circuit as save_circuit
    from emovllm.emotion import Emotion as Emotion
    from emovllm.engine.llm import LLM as LLM

__version__ = "0.1.0"
__all__ = ["LLM", "Circuit", "Emotion", "__version__", "load_circuit", "save_circuit"]

# Loaded when they are asked for: each process of a server imports this package.
_EXPORTS = {
    "Circuit": "emovllm.circuit",
    "Emotion": "emovllm.emotion",
    "LLM": "emovllm.engine.llm",
    "load_circuit": "emovllm.circuit_files",
    "save_circuit": "emovllm.circuit_files",
}
__getattr__, __dir__ = lazily(__name__, __all__, _EXPORTS)
