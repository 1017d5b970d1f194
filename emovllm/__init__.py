"""Emotion circuits of language models, served by vLLM."""

__version__ = "0.1.0"
