"""A Hugging Face model and its tokenizer, loaded one way wherever one is needed.

Transformers takes seconds to import, and is imported where something is loaded.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import emovllm
from emovllm.models import public_model_id, resolve_model

# Exact, and on most CPUs faster than half precision.
DTYPE = "float32"
DEVICE = "cpu"


class LoadedModel(NamedTuple):
    """A causal language model in evaluation mode, its tokenizer, and the name under which results speak of it."""

    network: Any
    tokenizer: Any
    public_id: str


def load(model: str | None, dtype: str = DTYPE, device: str = DEVICE) -> LoadedModel:
    """model: as the command line takes it, see `emovllm.models.resolve_model`.

    Raises: DefaultModelError, OSError.
    """
    folder = resolve_model(model)
    return LoadedModel(load_network(folder, dtype, device), load_tokenizer(folder), public_model_id(folder))


def load_network(folder: str | Path, dtype: str = DTYPE, device: str = DEVICE) -> Any:
    """dtype: a floating-point type of PyTorch's, or `auto` for the one that the weights are in. Raises: OSError."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(folder)
    # Some models of text and images are known to the second alone; their towers are not run.
    is_text = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    kind = transformers.AutoModelForCausalLM if is_text else transformers.AutoModelForImageTextToText
    network = kind.from_pretrained(folder, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
    return network.to(device).eval()


def random_network(folder: str | Path, dtype: str = "auto", device: str = DEVICE) -> Any:
    """A model of a folder's shape with random weights, where it has none. Raises: OSError."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    its_own = config.get_text_config().dtype or torch.float32
    network = AutoModelForCausalLM.from_config(config, dtype=its_own if dtype == "auto" else getattr(torch, dtype))
    return network.to(device).eval()


def load_tokenizer(folder: str | Path) -> Any:
    """Raises: OSError."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def fastest_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def versions() -> dict[str, str]:
    """What computed a result, for its provenance."""
    return {
        "emovllm": emovllm.__version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
