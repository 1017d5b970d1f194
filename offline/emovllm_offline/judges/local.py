"""The built-in judge: sentence embeddings and a linear head that was fitted on sentences written for it.

It needs no network, is blind to the target, and chooses one of seven labels. How often it is right, and where it is
not, `emovllm judge-report` measures (docs/results/judges.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from emovllm.errors import UnusableJudge
from emovllm.files import write_atomically
from emovllm_offline.judges import softmax
from emovllm_offline.judges.blind import likeliest
from emovllm_offline.judges.embeddings import WEIGHTS, Embedder, shared_embedder
from emovllm_offline.judges.judge import EMPTY_REPLY, Verdict, judge, option
from emovllm_offline.judges.sentences import LABELS, Sentences, load_sentences
from emovllm_offline.judges.softmax import Softmax
from emovllm_offline.storage.places import JUDGES

HEAD = JUDGES / "local_head.safetensors"
# By cross-validation on the sentences (docs/results/judges.md).
PENALTY = 1e-3


@dataclass(frozen=True, slots=True)
class Options:
    """device: of torch."""

    device: str = option("cpu", "torch device of judges that run in this process")


@judge("local", "sentence embeddings", Options)
def make(emotions: Sequence[str], options: Options) -> LocalJudge:
    """Raises: JudgeError, EmbeddingError."""
    return LocalJudge(emotions, None if options.device == "cpu" else Embedder(options.device))


class LocalJudge:
    """Labels a text with the likeliest of `LABELS`; the reason given is the probabilities of the first two."""

    name = "local"
    blind = True

    def __init__(self, emotions: Sequence[str] = LABELS[:-1], embedder: Embedder | None = None) -> None:
        """emotions: those that will be asked for; the labels to choose from are always all seven.

        Raises: JudgeError where it knows no such emotion, or the head's file cannot be used; EmbeddingError.
        """
        if unknown := [emotion for emotion in emotions if emotion not in LABELS]:
            raise UnusableJudge(
                f"the local judge does not know {', '.join(unknown)}, only {', '.join(LABELS)}: use a judge of any "
                "emotions, such as llm or openai-blind"
            )
        self._head, about = load_head()
        self.config: Mapping[str, Any] = about
        self._embedder = embedder or shared_embedder()

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]:
        """An empty text matches nothing, and has no label."""
        probabilities = self.probabilities(texts)
        return [
            likeliest(LABELS, row, target) if text.strip() else EMPTY_REPLY
            for row, text, target in zip(probabilities.tolist(), texts, targets, strict=True)
        ]

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """[n, labels], in the order of `LABELS`."""
        return self._head.probabilities(features(self._embedder, texts))


def features(embedder: Embedder, texts: Sequence[str]) -> np.ndarray:
    """What the head sees of each text, [n, (layers + 1) * width].

    All layers: the last one is trained for what a text is about, and lower ones know more of how it is said
    (docs/results/judges.md has the figures of both).
    """
    return embedder.embed_layers(texts).reshape(len(texts), -1)


def fit_head(x: np.ndarray, labels: Sequence[str], penalty: float = PENALTY) -> Softmax:
    """The head for these `features` and labels."""
    return softmax.fit(x, np.array([LABELS.index(label) for label in labels]), len(LABELS), penalty)


def fit_packaged(embedder: Embedder | None = None) -> None:
    """Fits the packaged head to the packaged sentences. Raises: JudgeError, EmbeddingError, OSError."""
    sentences = load_sentences()
    save_head(fit_head(features(embedder or shared_embedder(), sentences.texts), sentences.labels), sentences)


def save_head(head: Softmax, sentences: Sentences, path: Path = HEAD) -> None:
    """Writes the head with what it was fitted on, float32."""
    tensors = {"weight": head.weight.astype(np.float32), "bias": head.bias.astype(np.float32)}
    write_atomically(path, save(tensors, {"sentences": sentences.digest(), "embeddings": WEIGHTS}))


def load_head(path: Path = HEAD) -> tuple[Softmax, dict[str, str]]:
    """The packaged head, and the digests of what decides its answers. Raises: JudgeError."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = dict(file.metadata() or {})
            head = Softmax(file.get_tensor("weight"), file.get_tensor("bias"))
    except (OSError, SafetensorError) as error:
        raise UnusableJudge(f"{path}: {error}") from None
    if about.get("embeddings") != WEIGHTS:
        raise UnusableJudge(f"{path}: fitted on other embeddings; `emovllm judge-report --fit` fits it anew")
    about["head"] = head.digest()
    return head, about
