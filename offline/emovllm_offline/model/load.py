"""A Hugging Face model and its tokenizer, loaded one way wherever one is needed.

Transformers takes seconds to import, and is imported where something is loaded.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import emovllm
from emovllm.errors import OptionError, PromptError, UnsupportedModelError
from emovllm.models import public_model_id, resolve_model
from emovllm_offline.data.prompts import has_template
from emovllm_offline.model.dequantize import load_plain, quantization, require_no_scales

# Exact, and on most CPUs faster than half precision.
DTYPE = "float32"

logger = logging.getLogger(__name__)


class LoadedModel(NamedTuple):
    """A causal language model in evaluation mode, its tokenizer, and the name under which results speak of it."""

    network: Any
    tokenizer: Any
    public_id: str


def load(model: str | None, dtype: str = DTYPE, device: str | None = None) -> LoadedModel:
    """model: as the command line takes it, see `emovllm.models.resolve_model`.

    Raises: DefaultModelError, PromptError, OSError.
    """
    folder = resolve_model(model)
    # First what fails at once.
    tokenizer = load_tokenizer(folder)
    return LoadedModel(load_network(folder, dtype, device), tokenizer, public_model_id(folder))


def load_network(folder: str | Path, dtype: str = DTYPE, device: str | None = None) -> Any:
    """dtype: a floating-point type of PyTorch's, or `auto` for the one that the weights are in.

    device: a device of PyTorch's; `auto` to spread the model over all GPUs, by accelerate; None for the fastest.
    Quantised weights are dequantised.
    Raises: UnsupportedModelError where they cannot be, or the model does not fit; WeightsError; OptionError; OSError.
    """
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    # Loading takes long, and is not begun for a device that is not there.
    target = None if device == "auto" else device_of(device)
    config = config_of(folder)
    kind = _class_of(config, folder)
    options: dict[str, Any] = {
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "output_loading_info": True,
    }
    if target is None:
        _require_accelerate()
        options["device_map"] = "auto"
    settings = quantization(config, Path(folder))
    if settings is None:
        network, report = kind.from_pretrained(folder, **options)
        require_no_scales(report["unexpected_keys"], folder)
    else:
        network = load_plain(kind, config, settings, folder, options)
        # Transformers forgets it, and a circuit says it of itself.
        network.config.get_text_config().dequantized_from = settings
    if target is None:
        require_in_memory(network, folder)
        return network.eval()
    return network.to(target).eval()


def config_of(folder: str | Path) -> Any:
    """Raises: UnsupportedModelError, OSError."""
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(folder)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedModelError(
            f"this version of Transformers does not know the model of {folder} ({reason}): take a newer one, or "
            "another model"
        ) from None


def context_of(config: Any) -> int | None:
    """Tokens that a model takes by its configuration, or by that of the language model in it; None where it does not
    say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or None


def _class_of(config: Any, folder: str | Path) -> Any:
    """The Auto class that loads a model. Raises: UnsupportedModelError."""
    import transformers

    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    # Some models of text and images are known to it alone; their towers are not run.
    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    raise UnsupportedModelError(
        f"{folder} ({config.model_type}) is no causal language model that Transformers knows: take one that generates "
        "text"
    )


def device_of(name: str | None) -> Any:
    """Raises: OptionError."""
    import torch

    try:
        device = torch.device(name or fastest_device())
    except RuntimeError:
        raise OptionError(f"--device {name}: no device of PyTorch's; give cpu, cuda, cuda:1 or auto") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"--device {name}: PyTorch sees no CUDA device here; leave it out, or give cpu")
    try:
        # A build without that kind of device says so in an AssertionError.
        if name:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise OptionError(f"--device {name}: not on this machine; give cpu, cuda, cuda:1 or auto") from None
    return device


def _require_accelerate() -> None:
    """Raises: OptionError."""
    if find_spec("accelerate") is None:
        raise OptionError("--device auto spreads a model by accelerate, which is not installed: pip install accelerate")


def require_in_memory(network: Any, folder: str | Path) -> None:
    """Raises: UnsupportedModelError where weights were left on a disk or in the CPU's memory, to be fetched at each
    use: their numbers cannot be read."""
    if any(parameter.is_meta for parameter in network.parameters()):
        raise UnsupportedModelError(
            f"{folder} does not fit into the devices that there are: take more of them, or a narrower --dtype"
        )


def random_network(folder: str | Path, dtype: str = "auto", device: str = "cpu") -> Any:
    """A model of a folder's shape with random weights, where it has none. Raises: OSError."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    its_own = config.get_text_config().dtype or torch.float32
    network = AutoModelForCausalLM.from_config(config, dtype=its_own if dtype == "auto" else getattr(torch, dtype))
    return network.to(device).eval()


def load_tokenizer(folder: str | Path) -> Any:
    """Raises: OSError; PromptError, where prompts cannot be made with it."""
    from transformers import AutoTokenizer

    try:
        # Mistral-common's own takes no templates; the usual one beside it has the same tokens.
        tokenizer = AutoTokenizer.from_pretrained(folder, mistral_format=False)
    except OSError:
        raise
    except Exception as error:
        # What the library of tokenizers raises is no more special than that.
        reason = " ".join(str(error).split())[:200]
        raise PromptError(
            f"the tokenizer of {folder} cannot be loaded ({reason}): take a model folder with tokenizer.json"
        ) from None
    if has_template(tokenizer):
        return tokenizer
    if "tekken" in Path(getattr(tokenizer, "vocab_file", None) or "").name:
        raise PromptError(
            f"{folder} has Mistral's own tokenizer alone (tekken.json): take a model folder with tokenizer.json and "
            "chat_template.jinja, as conversions for Transformers have"
        )
    logger.warning(
        "the tokenizer of %s has no chat template: the model is asked in plain text, as fits a base model; one that "
        "was trained to chat needs its chat_template.jinja in its folder",
        folder,
    )
    return tokenizer


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
