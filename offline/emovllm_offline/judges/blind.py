"""What judges that are not told the target have in common."""

from __future__ import annotations

from collections.abc import Sequence

from emovllm.readout import NEUTRAL
from emovllm_offline.judges.judge import Verdict


def blind_labels(emotions: Sequence[str]) -> tuple[str, ...]:
    """What a blind judge that is shown a list chooses from: sorted, for the order in which a style names its emotions
    must not decide the answers, and neutral at the end."""
    return (*sorted({*emotions} - {NEUTRAL}), NEUTRAL)


def likeliest(labels: Sequence[str], probabilities: Sequence[float], target: str) -> Verdict:
    """The label of the highest probability, the first of equals; the reason is the probabilities of the first two."""
    first, second = sorted(range(len(labels)), key=lambda place: -probabilities[place])[:2]
    label = labels[first]
    reason = f"{label} {probabilities[first]:.2f}, {labels[second]} {probabilities[second]:.2f}"
    return Verdict(label == target, label, reason)
