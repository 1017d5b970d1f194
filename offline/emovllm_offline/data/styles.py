"""Elicitation styles. They are the server's too, which may put their instructions into a chat (`emovllm.styles`)."""

from __future__ import annotations

from emovllm.styles import (
    DEFAULT_STYLES,
    Frame,
    Span,
    Style,
    Turn,
    common_emotions,
    load_style,
    packaged_styles,
)

__all__ = ["DEFAULT_STYLES", "Frame", "Span", "Style", "Turn", "common_emotions", "load_style", "packaged_styles"]
