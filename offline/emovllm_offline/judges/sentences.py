"""The sentences that the local judge is fitted on and tested with, and which of them name what they show."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from emovllm.errors import JudgeError
from emovllm.files import read_text
from emovllm.readout import NEUTRAL
from emovllm_offline.data.sev import emotion_words
from emovllm_offline.judges.lexicon import Entries, load_lexicon, tokens
from emovllm_offline.storage.places import JUDGES

# The judge's labels: Ekman's six and neutral, in the order of every table.
LABELS = ("anger", "sadness", "happiness", "fear", "surprise", "disgust", NEUTRAL)
# Weights from which a lexicon's entry shows its emotion; below, it hints.
SHOWS = 2


@dataclass(frozen=True, slots=True)
class Sentences:
    """Short texts, each with the one label it was written for."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def digest(self) -> str:
        """sha256 of the texts and labels, in their order."""
        lines = (f"{label}\t{text}\n" for text, label in zip(self.texts, self.labels, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_sentences(part: str = "sentences") -> Sentences:
    """The packaged `sentences` (to fit on) or `held_out` (never fitted on): one text a line, a file for each label.

    Raises: JudgeError where a file is missing or a text stands twice.
    """
    texts: list[str] = []
    labels: list[str] = []
    for label in LABELS:
        path = JUDGES / part / f"{label}.txt"
        lines = [line for line in read_text(path, JudgeError).splitlines() if line.strip()]
        texts += lines
        labels += [label] * len(lines)
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise JudgeError(f"{JUDGES / part}: a text stands there twice: {twice!r}")
    return Sentences(tuple(texts), tuple(labels))


def named(texts: Sequence[str]) -> list[bool]:
    """Whether each text has a word that names or shows an emotion, of any label and also where it is negated.

    Such words are those of data/emotion_words.txt, and the packaged lexicon's entries that weigh at least `SHOWS`.
    """
    words = emotion_words()
    entries = [
        Entries({weight: found for weight, found in by_weight.items() if weight >= SHOWS})
        for by_weight in load_lexicon().emotions.values()
    ]
    split = [tokens(text) for text in texts]
    return [
        not words.isdisjoint(found) or any(next(entry.find(found), None) is not None for entry in entries)
        for found in split
    ]
