"""Felt against shown: what was read in the states that wrote replies, beside what judges find in their texts.

A reply is felt where the emotion asked for leads in what was read (`ReadoutJudge`), and shown by a judge of texts where
that takes it for the emotion. Replies that none was asked of are the control: they count for each emotion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emovllm_offline.evaluation.plan import NONE, plain_name
from emovllm_offline.evaluation.scoring import Scored
from emovllm_offline.evaluation.summary import ALL, Condition, condition_of, conditions
from emovllm_offline.intervals import Estimate, by_group
from emovllm_offline.judges.judge import READOUT

BOTH, FELT, SHOWN, NEITHER = KINDS = ("felt and shown", "felt alone", "shown alone", "neither")


@dataclass(frozen=True, slots=True)
class Parting:
    """One condition's replies of one emotion, or of `all`, beside one judge of texts.

    replies: those that it and the read-out could judge. shares: of each of KINDS. parted: of those that are felt alone
    or shown alone. Intervals are over groups of messages.
    """

    judge: str
    condition: Condition
    emotion: str
    replies: int
    shares: dict[str, Estimate]
    parted: Estimate


@dataclass(frozen=True, slots=True)
class Rise:
    """How probable an emotion is read to be, on average, in the replies that were to have it, or in those of `all`.

    plain: in the replies to the same messages that were to have none; rise: by how much it is more, message by message.
    Both are None without such replies. prompt: at the prompt's last token, before anything was written.
    """

    condition: Condition
    emotion: str
    replies: int
    reply: Estimate
    prompt: Estimate
    plain: Estimate | None
    rise: Estimate | None


@dataclass(frozen=True, slots=True)
class Felt:
    """partings: of every judge of texts; rises: of every condition but the plain one."""

    partings: Sequence[Parting]
    rises: Sequence[Rise]


def felt(scored: Sequence[Scored], emotions: Sequence[str], judges: Sequence[str], seed: int = 0) -> Felt | None:
    """None where nothing was read."""
    if READOUT not in judges:
        return None
    texts = [judge for judge in judges if judge != READOUT]
    return Felt(list(_partings(scored, emotions, texts, seed)), list(_rises(scored, emotions, seed)))


def most_parted(partings: Sequence[Parting], judge: str, count: int = 3) -> list[Parting]:
    """Where a judge and the read-out part on most of the replies in an emotion; not where they never do."""
    steered = [of for of in partings if of.judge == judge and of.emotion != ALL and of.condition.method != NONE]
    return [of for of in sorted(steered, key=lambda of: -of.parted.value) if of.parted.value > 0][:count]


def _partings(scored: Sequence[Scored], emotions: Sequence[str], judges: Sequence[str], seed: int) -> Iterator[Parting]:
    for judge in judges:
        for condition in conditions(scored):
            for emotion in (*emotions, ALL):
                found = [
                    (KINDS[2 * (not felt.match) + (not shown.match)], reply.group)
                    for reply in scored
                    if condition_of(reply) == condition
                    for target, felt in reply.verdicts[READOUT].items()
                    if emotion in (ALL, target) and felt.judged and (shown := reply.verdicts[judge][target]).judged
                ]
                if found:
                    yield _parting(judge, condition, emotion, found, seed)


def _parting(judge: str, condition: Condition, emotion: str, found: Sequence[tuple[str, str]], seed: int) -> Parting:
    """found: the kind and the group of each reply."""
    groups = [group for _, group in found]

    def share(*kinds: str) -> Estimate:
        return by_group([float(kind in kinds) for kind, _ in found], groups, seed)

    shares = {kind: share(kind) for kind in KINDS}
    return Parting(judge, condition, emotion, len(found), shares, share(FELT, SHOWN))


def _rises(scored: Sequence[Scored], emotions: Sequence[str], seed: int) -> Iterator[Rise]:
    plain = {
        reply.key.message: reply.readout.reply
        for reply in scored
        if reply.key.method == NONE and reply.readout is not None
    }
    for condition in conditions(scored):
        for emotion in (*emotions, ALL) if condition.method != NONE else ():
            read = [
                (reply, reply.readout, plain_name(reply.key.emotion))
                for reply in scored
                if condition_of(reply) == condition and emotion in (ALL, reply.key.emotion)
                if reply.readout is not None and plain_name(reply.key.emotion) in reply.readout.reply
            ]
            if not read:
                continue
            groups = [reply.group for reply, _, _ in read]
            beside = [
                (told.reply[name], plain[reply.key.message][name], reply.group)
                for reply, told, name in read
                if name in plain.get(reply.key.message, {})
            ]
            of = [group for _, _, group in beside]
            yield Rise(
                condition,
                emotion,
                len(read),
                by_group([told.reply[name] for _, told, name in read], groups, seed),
                by_group([told.prompt[name] for _, told, name in read], groups, seed),
                by_group([before for _, before, _ in beside], of, seed) if beside else None,
                by_group([after - before for after, before, _ in beside], of, seed) if beside else None,
            )
