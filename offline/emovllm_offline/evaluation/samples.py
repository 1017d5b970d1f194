"""Replies to show: a few messages, drawn at random, with what every method made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def samples(scored: Sequence[Scored], judge: str, seed: int) -> list[Sample]:
    """Replies side by side, for each pair drawn."""
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
    return parts


def _label(reply: Scored, judge: str) -> str:
    verdicts = reply.verdicts[judge].values()
    if not any(verdict.judged for verdict in verdicts):
        return "not judged"
    return reply.label(judge) or ("match" if any(verdict.match for verdict in verdicts) else "-")
