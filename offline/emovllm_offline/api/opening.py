"""The model that a function of the Python API is given, in memory or by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emovllm.errors import ModelError
from emovllm.models import public_model_id
from emovllm_offline.model.load import LoadedModel, load


def open_model(model: Any, tokenizer: Any) -> LoadedModel:
    """Raises: ModelError."""
    if model is None or isinstance(model, str | Path):
        return load(None if model is None else str(model))
    if tokenizer is None:
        raise ModelError("a model that is in memory needs its tokenizer: pass it as the argument after the model")
    return LoadedModel(model, tokenizer, public_model_id(model.name_or_path))
