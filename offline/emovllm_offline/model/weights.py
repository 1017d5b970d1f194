"""The projections' weights of a model folder, one at a time: a circuit's fingerprint needs no loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open

from emovllm.architectures import parse_site
from emovllm.errors import WeightsError
from emovllm_offline.model.unpack import PLAIN


class Projections:
    """The o_proj and down_proj weights of every layer in a model's safetensors files."""

    def __init__(self, model: str | Path) -> None:
        """`model`: a folder, or a Hugging Face id. Raises: WeightsError."""
        self._files: Mapping[tuple[str, int], tuple[Path, str]] = dict(_find(weights_folder(model)))
        if not self._files:
            raise WeightsError(f"{model}: no projection's weight in any *.safetensors there")

    def __call__(self, kind: str, layer: int) -> np.ndarray:
        """The weight of `attn` (o_proj) or `mlp` (down_proj), float32 [hidden, width]. Raises: WeightsError."""
        if (kind, layer) not in self._files:
            raise WeightsError(f"the model has no {kind} projection in layer {layer}")
        path, name = self._files[kind, layer]
        with safe_open(path, framework="pt") as file:
            weight = file.get_tensor(name)
        if weight.dtype not in PLAIN:
            raise WeightsError(f"{name} in {path.name} is quantised: name the original, unquantised model")
        return weight.float().numpy()  # type: ignore[no-any-return]


def weights_folder(model: str | Path) -> Path:
    """A model's folder, or where the weights and settings of a Hugging Face id are once they are fetched.

    Raises: WeightsError.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    try:
        return Path(snapshot_download(str(model), allow_patterns=["*.safetensors", "*.json"]))
    except GatedRepoError:
        raise WeightsError(
            f"{model}: its weights are gated: accept their licence on its page and set HF_TOKEN, or name a folder that "
            "has them"
        ) from None
    except OSError as error:
        raise WeightsError(f"{model}: neither a folder nor a model whose weights could be fetched ({error})") from None


def _find(folder: Path) -> list[tuple[tuple[str, int], tuple[Path, str]]]:
    found: list[tuple[tuple[str, int], tuple[Path, str]]] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                site = parse_site(name.removesuffix(".weight")) if name.endswith(".weight") else None
                if site is not None:
                    found.append((site, (path, name)))
    return found
