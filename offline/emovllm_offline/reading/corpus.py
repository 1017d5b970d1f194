"""The labelled texts of a probe: those it learns from, those that layer and penalty are chosen by, and the test's."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from emovllm.errors import DataError
from emovllm_offline.data.texts import Text

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
# Fewer of a label are no evidence of anything.
LEAST = 2


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts with one label each. label: [texts], the place in `labels`; split: [texts], one of SPLITS.

    left_out: how many texts were left out, by the reason.
    """

    labels: tuple[str, ...]
    texts: tuple[str, ...]
    label: np.ndarray
    group: np.ndarray
    split: np.ndarray
    left_out: dict[str, int]

    def of(self, split: Split) -> np.ndarray:
        """The places of its texts."""
        return np.flatnonzero(self.split == split)

    def without(self, reasons: Sequence[str | None]) -> Corpus:
        """The corpus without the texts for which there is a reason, [texts]."""
        kept = np.array([reason is None for reason in reasons])
        return replace(
            self,
            texts=tuple(text for text, keep in zip(self.texts, kept, strict=True) if keep),
            label=self.label[kept],
            group=self.group[kept],
            split=self.split[kept],
            left_out={**self.left_out, **Counter(reason for reason in reasons if reason is not None)},
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """Texts by split and label."""
        return {
            split: dict(zip(self.labels, np.bincount(self.label[at], minlength=len(self.labels)).tolist(), strict=True))
            for split in SPLITS
            for at in [self.of(split)]
        }

    def digest(self, split: Split | None = None) -> str:
        """sha256 over texts, labels, groups and splits; of one split alone where it is named."""
        at = range(len(self.texts)) if split is None else self.of(split).tolist()
        columns = (self.label.tolist(), self.group.tolist(), self.split.tolist())
        rows = [(self.texts[place], *(column[place] for column in columns)) for place in at]
        return hashlib.sha256(json.dumps([self.labels, rows]).encode()).hexdigest()

    def about(self) -> dict[str, Any]:
        """What provenance says of it."""
        groups = {split: len(np.unique(self.group[self.of(split)])) for split in SPLITS}
        digests = {"sha256": self.digest(), "test sha256": self.digest("test")}
        return {**digests, "texts": self.counts(), "groups": groups, "left out": self.left_out}


def corpus_of(
    data: Sequence[Text],
    dev: Sequence[Text] = (),
    test: Sequence[Text] = (),
    *,
    labels: Sequence[str] = (),
    limit: int | None = None,
    held_out: float = 0.1,
    seed: int = 0,
) -> Corpus:
    """data: to learn from, and where no dev or test texts are given to hold them out of, by group.

    A text with several labels is left out of all parts, and one that is not among `labels` where there are any. limit:
    of each of the three about so many, with each label's share as it was. Raises: DataError, where there are no two
    labels.
    """
    left_out: Counter[str] = Counter()
    rows: list[tuple[Text, Split]] = []
    for split, part in zip(SPLITS, (data, dev, test), strict=True):
        reasons = [reason_left_out(text, labels) for text in part]
        left_out.update(reason for reason in reasons if reason is not None)
        single = [text for text, reason in zip(part, reasons, strict=True) if reason is None]
        rows += [(text, split) for text in draw(single, limit, seed)]
    names = tuple(sorted({text.labels[0] for text, _ in rows}))
    if len(names) < 2:
        raise DataError(f"probes tell two labels or more apart, and the texts have {len(names)}: {', '.join(names)}")
    corpus = Corpus(
        names,
        tuple(text.text for text, _ in rows),
        np.array([names.index(text.labels[0]) for text, _ in rows]),
        np.array([text.group for text, _ in rows]),
        np.array([split for _, split in rows]),
        dict(left_out),
    )
    return _with_held_out(corpus, held_out, seed)


def reason_left_out(text: Text, labels: Sequence[str]) -> str | None:
    """Why a text is left out; None where it is not."""
    if len(text.labels) > 1:
        return "several labels"
    return "another label" if labels and text.labels[0] not in labels else None


def require_enough(corpus: Corpus) -> None:
    """Raises: DataError where a label has too few texts to learn from, or none but those, or a part has no texts."""
    counts = corpus.counts()
    for name, count in counts["train"].items():
        if count < LEAST:
            raise DataError(
                f"the label {name} has {count} texts to learn from, which is too few: give more of them, a larger "
                "--limit, or --labels without it"
            )
    for split in ("dev", "test"):
        if len(corpus.of(split)) == 0:
            raise DataError(f"no texts are left for the {split} part: give more of them, or --{split}")


def draw(texts: Sequence[Text], limit: int | None, seed: int, evenly: bool = False) -> list[Text]:
    """About `limit` texts in their order, each label's share as it is, at least one of each; the same each time.
    evenly: as many of each label, as far as there are so many."""
    if limit is None or len(texts) <= limit:
        return list(texts)
    random = np.random.default_rng(seed)
    labels = np.array([text.labels[0] for text in texts])
    kept: list[int] = []
    counts = sorted(Counter(labels.tolist()).items())
    for name, count in counts:
        share = max(1, round(limit / len(counts) if evenly else limit * count / len(texts)))
        kept += random.choice(np.flatnonzero(labels == name), min(share, count), replace=False).tolist()
    return [texts[place] for place in sorted(kept)]


def _with_held_out(corpus: Corpus, share: float, seed: int) -> Corpus:
    """Holds dev and test texts out of the others by group, with each label's share nearly as it is, where there are
    none. Raises: DataError where there are too few groups."""
    split = corpus.split.copy()
    for lacking in ("test", "dev"):
        if (split == lacking).any():
            continue
        train = np.flatnonzero(split == "train")
        split[train[_fold(corpus.label[train], corpus.group[train], share, seed)]] = lacking
    return replace(corpus, split=split)


def _fold(label: np.ndarray, group: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Places of about a share of the texts, in whole groups, with each label's share by what most of a group are."""
    from sklearn.model_selection import KFold, StratifiedKFold

    names, of = np.unique(group, return_inverse=True)
    folds = min(round(1 / share), len(names))
    if folds < 2:
        raise DataError("the texts are of one group, and none can be held out: give --dev and --test")
    most = np.bincount(of * (label.max() + 1) + label, minlength=len(names) * (label.max() + 1))
    kind = most.reshape(len(names), -1).argmax(1)
    dealt = (StratifiedKFold if np.bincount(kind).max() >= folds else KFold)(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Of what fewer groups than folds are, some folds have none: whoever needs it tells.
        warnings.simplefilter("ignore", UserWarning)
        _, held_out = next(iter(dealt.split(names, kind)))
    return np.flatnonzero(np.isin(of, held_out))
