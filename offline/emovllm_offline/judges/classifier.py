"""A judge that is a Hugging Face text-classification model. It is blind to the target."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emovllm.errors import UnusableJudge
from emovllm.readout import NEUTRAL
from emovllm_offline.judges.judge import EMPTY_REPLY, Verdict, judge, option
from emovllm_offline.judges.text import batches_by_length

# An English RoBERTa for Ekman's six emotions and neutral.
DEFAULT_MODEL = "j-hartmann/emotion-english-distilroberta-base"
# What such models call the emotions that a style names otherwise.
DEFAULT_LABELS = {
    "joy": "happiness",
    "happy": "happiness",
    "joyful": "happiness",
    "sad": "sadness",
    "angry": "anger",
    "scared": "fear",
    "afraid": "fear",
    "surprised": "surprise",
    "disgusted": "disgust",
    "others": NEUTRAL,
    "no emotion": NEUTRAL,
}


@dataclass(frozen=True, slots=True)
class Options:
    """model: a folder or id; labels: emotions by the model's names for them; device: of torch."""

    model: str = option(
        DEFAULT_MODEL, "the judge's model: its name at its endpoint; for hf and llm a folder or id", metavar="M"
    )
    labels: Mapping[str, str] | None = option(
        None, "emotions by the hf model's names for them", metavar="THEIRS=OURS,..."
    )
    device: str = option("cpu", "torch device of judges that run in this process")


@judge("hf", "a text-classification model", Options)
def make(emotions: Sequence[str], options: Options) -> HFJudge:
    """Raises: JudgeError."""
    return HFJudge(emotions, options.model, labels=options.labels, device=options.device)


class HFJudge:
    """Labels a text with the likeliest of those labels of a classifier that name an emotion asked for, or neutral.

    Labels of the model that name neither are left out of the choice.
    """

    name = "hf"
    blind = True

    def __init__(
        self,
        emotions: Sequence[str],
        model: str = DEFAULT_MODEL,
        *,
        labels: Mapping[str, str] | None = None,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        """model: a folder or a Hugging Face id; labels: emotions by the model's names, beside `DEFAULT_LABELS`.

        Raises: JudgeError where the model cannot be read, is no classifier, or lacks an emotion or neutral.
        """
        import transformers

        from emovllm.models import public_model_id

        transformers.logging.disable_progress_bar()
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
            loaded, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                model, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise UnusableJudge(f"the judge's model {model!r} cannot be read: {str(error).splitlines()[0]}") from None
        if info["missing_keys"]:
            raise UnusableJudge(f"{model} is no text-classification model: it lacks {min(info['missing_keys'])}")
        self._model = loaded.to(device).eval()
        self._device = device
        self._batch_size = batch_size
        self._columns, self._labels = _choose(loaded.config.id2label, emotions, {**DEFAULT_LABELS, **(labels or {})})
        self.config: Mapping[str, Any] = {
            "model": public_model_id(model),
            "weights": _digest(loaded),
            "labels": list(zip(self._columns, self._labels, strict=True)),
        }

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]:
        """An empty text matches nothing, and has no label."""
        if len(texts) != len(targets):
            raise ValueError(f"{len(texts)} texts, but {len(targets)} targets")
        probabilities = self.probabilities(texts)
        return [
            self._verdict(row, target) if text.strip() else EMPTY_REPLY
            for row, text, target in zip(probabilities, texts, targets, strict=True)
        ]

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """[n, labels] among the labels that may be chosen."""
        out = np.empty((len(texts), len(self._columns)))
        for rows in batches_by_length(texts, self._batch_size):
            out[rows] = self._batch([texts[i] for i in rows])
        return out

    def _batch(self, texts: list[str]) -> Any:
        import torch

        length = min(self._tokenizer.model_max_length, 512)
        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(**inputs.to(self._device)).logits  # [n, labels of the model]
            return logits[:, self._columns].double().softmax(-1).cpu().numpy()

    def _verdict(self, row: np.ndarray, target: str) -> Verdict:
        # A model may have several names for one emotion: their probabilities belong together.
        totals: dict[str, float] = {}
        for label, value in zip(self._labels, row.tolist(), strict=True):
            totals[label] = totals.get(label, 0.0) + value
        label = max(sorted(totals), key=totals.__getitem__)
        return Verdict(label == target, label, f"{label} {totals[label]:.2f}")


def _choose(
    names: Mapping[int, str], emotions: Sequence[str], renamed: Mapping[str, str]
) -> tuple[list[int], list[str]]:
    """The model's columns that may be chosen, and the label of each."""
    wanted = {*emotions, NEUTRAL}
    ours = {column: renamed.get(name.strip().lower(), name.strip().lower()) for column, name in names.items()}
    chosen = [(column, label) for column, label in sorted(ours.items()) if label in wanted]
    if missing := sorted(wanted - {label for _, label in chosen}):
        raise UnusableJudge(
            f"the judge's model has no label for {', '.join(missing)}, only {', '.join(names.values())}: "
            "tell what its labels mean, or use another model"
        )
    return [column for column, _ in chosen], [label for _, label in chosen]


def _digest(model: Any) -> str:
    """sha256 of the weights: a name alone does not say which they are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
