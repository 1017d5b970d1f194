"""Shared by all tests: the default model, and circuits for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tests reach for no hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def default_model() -> str:
    from emovllm.default_model import default_model as convert

    return str(convert())


@pytest.fixture(scope="session")
def strong_circuit(default_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random circuit for the default model, in all layers, that changes replies at once."""
    from circuits import random_circuit

    return random_circuit(default_model, tmp_path_factory.mktemp("circuits") / "strong")
