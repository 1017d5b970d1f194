"""How far two judges agree beyond chance: Cohen's kappa (Educational and Psychological Measurement 20, 1960)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from emovllm_offline.judges.judge import Verdict


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of two judges of the same texts. count: those that both have judged."""

    on: Literal["label", "match"]
    count: int
    observed: float  # share of texts on which they agree
    kappa: float | None  # None where both give one and the same answer throughout: chance alone explains that


def agreement(a: Sequence[Verdict], b: Sequence[Verdict]) -> Agreement:
    """Of two judges' verdicts on the same texts and targets.

    Compared are the labels where both judges are blind, and otherwise whether the target was matched. A blind judge
    has no label for an empty text: that counts as an answer of its own. Texts that one of them could not judge are left
    out.

    Raises: ValueError where the verdicts differ in number, or no text was judged by both.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"agreement needs verdicts on the same texts, got {len(a)} and {len(b)}")
    pairs = [(one, other) for one, other in zip(a, b, strict=True) if one.judged and other.judged]
    if not pairs:
        raise ValueError("agreement needs texts that both judges have judged, got none")
    a, b = zip(*pairs, strict=True)
    blind = all(any(verdict.label is not None for verdict in verdicts) for verdicts in (a, b))
    answers = [[verdict.label if blind else str(verdict.match) for verdict in verdicts] for verdicts in (a, b)]
    observed, kappa = cohens_kappa(*answers)
    return Agreement("label" if blind else "match", len(a), observed, kappa)


def cohens_kappa(a: Sequence[str | None], b: Sequence[str | None]) -> tuple[float, float | None]:
    """The share of equal answers, and (share - chance) / (1 - chance); None where chance is 1."""
    from sklearn.metrics import cohen_kappa_score

    # scikit-learn cannot sort None among strings; no label is empty.
    answers = [[answer or "" for answer in of_judge] for of_judge in (a, b)]
    equal = float(np.mean([one == other for one, other in zip(*answers, strict=True)]))
    if len({*answers[0], *answers[1]}) == 1:
        return equal, None
    return equal, float(cohen_kappa_score(*answers))
