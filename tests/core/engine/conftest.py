"""Shared by the tests of what runs in vLLM's processes."""

from __future__ import annotations

import pytest


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton interprets our kernel, which it decides when the kernel is first imported."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
