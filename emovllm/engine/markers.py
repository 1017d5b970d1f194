"""The automaton over an engine's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emovllm.phases import Automaton

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def automaton_of(vllm_config: VllmConfig) -> Automaton | None:
    """None where its settings have no markers."""
    return None
