"""Replies to show: a few messages, drawn at random, with what every method made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emovllm.readout import leading
from emovllm_offline.evaluation.plan import plain_name
from emovllm_offline.evaluation.scoring import Scored
from emovllm_offline.evaluation.summary import condition_of, conditions
from emovllm_offline.judges.judge import READOUT
from emovllm_offline.reporting.tables import Table

SAMPLES = 12
# Replies that are felt alone, and as many that are shown alone.
APART = 3


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
    """Replies side by side, for each pair drawn; with what was read, where that is known."""
    read = any(reply.readout is not None for reply in scored)
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
            told = [_read(reply)] if read else []
            rows.append([str(condition), said, *told, _text(reply)])
        user = next(iter(of_message.values())).user
        head = ["method, strength", "label", *(["read"] if read else []), "reply"]
        parts.append(Sample(emotion, user, Table(head, rows)))
    return parts


def apart(scored: Sequence[Scored], judge: str) -> Table | None:
    """Of the replies on which a judge of texts and the read-out part, those in which the emotion asked for is read to
    be least probable though it is shown, and most probable though it is not; None where there are none."""
    found = []
    for reply in scored:
        name, verdicts = plain_name(reply.key.emotion), (reply.verdicts.get(READOUT, {}), reply.verdicts[judge])
        felt, shown = (of.get(reply.key.emotion) for of in verdicts)
        if felt and shown and felt.judged and shown.judged and felt.match != shown.match and reply.readout is not None:
            found.append((felt.match, reply.readout.reply[name], reply))
    alone = sorted((one for one in found if not one[0]), key=lambda one: one[1])[:APART]
    alone += sorted((one for one in found if one[0]), key=lambda one: -one[1])[:APART]
    rows = [
        [
            str(condition_of(reply)),
            reply.key.emotion,
            "felt alone" if felt else "shown alone",
            _label(reply, judge),
            f"{reply.key.emotion} {probability:.2f}; {_read(reply)}",
            reply.user,
            _text(reply),
        ]
        for felt, probability, reply in alone
    ]
    head = ["method, strength", "emotion", "it is", f"label, {judge}", "read: the emotion's; what leads"]
    return Table([*head, "message", "reply"], rows) if rows else None


def _text(reply: Scored) -> str:
    return reply.text + (" [cut]" if reply.capped else "")


def _read(reply: Scored) -> str:
    """The label that leads in what was read, and its probability."""
    if reply.readout is None or not reply.readout.reply:
        return "-"
    read = reply.readout.reply
    return f"{leading(read)} {read[leading(read)]:.2f}"


def _label(reply: Scored, judge: str) -> str:
    verdicts = reply.verdicts[judge].values()
    if not any(verdict.judged for verdict in verdicts):
        return "not judged"
    return reply.label(judge) or ("match" if any(verdict.match for verdict in verdicts) else "-")
