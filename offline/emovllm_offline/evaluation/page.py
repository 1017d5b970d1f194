"""An evaluation on one page that works offline, its figures and sample replies inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emovllm_offline.evaluation.scoring import Scored
from emovllm_offline.evaluation.summary import condition_of, conditions
from emovllm_offline.reporting.tables import Table

SAMPLES = 12


@dataclass(frozen=True, slots=True)
class Sample:
    """A message and an emotion, with every method's reply."""

    emotion: str
    user: str
    table: Table


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page. image: as `plots.data_uri` gives it."""

    title: str
    text: str = ""
    table: Table | None = None
    image: str | None = None
    samples: Sequence[Sample] = ()


def draw_samples(scored: Sequence[Scored], seed: int, count: int = SAMPLES) -> list[tuple[str, str]]:
    """Pairs of message and emotion to show, drawn at random; each emotion as often as the count allows."""
    rng = np.random.default_rng(seed)
    messages = list(dict.fromkeys(reply.key.message for reply in scored))
    emotions = list(dict.fromkeys(reply.key.emotion for reply in scored if reply.key.emotion))
    if not emotions:
        return [(messages[i], "") for i in rng.permutation(len(messages))[:count]]
    drawn = rng.choice(len(messages), min(count, len(messages)), replace=False)
    order = rng.permutation(len(emotions))
    return [(messages[at], emotions[order[i % len(emotions)]]) for i, at in enumerate(drawn)]


def samples(scored: Sequence[Scored], judge: str, seed: int) -> Section:
    """Replies side by side, one table for each pair drawn."""
    by_key = {reply.key: reply for reply in scored}
    parts = []
    for message, emotion in draw_samples(scored, seed):
        of_message = {
            condition_of(reply): reply
            for key, reply in by_key.items()
            if key.message == message and key.emotion in ("", emotion)
        }
        rows = []
        for condition in conditions(list(of_message.values())):
            reply = of_message[condition]
            said = _label(reply, judge)
            rows.append([str(condition), said, reply.text + (" [cut]" if reply.capped else "")])
        user = next(iter(of_message.values())).user
        parts.append(Sample(emotion, user, Table(["method, strength", "label", "reply"], rows)))
    return Section(
        "Sample replies",
        f"{SAMPLES} messages and an emotion for each, drawn at random (seed {seed}), with every method's reply. "
        f"Label: what the judge {judge} takes it for.",
        samples=parts,
    )


def _label(reply: Scored, judge: str) -> str:
    verdicts = reply.verdicts[judge].values()
    if not any(verdict.judged for verdict in verdicts):
        return "not judged"
    return reply.label(judge) or ("match" if any(verdict.match for verdict in verdicts) else "-")


def facts(content: Mapping[str, Any]) -> Table:
    """What an evaluation was made from, as a table."""
    return Table(["what", "value"], list(_flat(content)))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)
