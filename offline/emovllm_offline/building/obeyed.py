"""Which style a model obeys, in which emotions, and what of its own replies it is to learn from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from emovllm_offline.data.examples import Example
from emovllm_offline.data.sev import Item
from emovllm_offline.data.styles import Style
from emovllm_offline.discovery.survival import Reply
from emovllm_offline.evaluation.choice import ENOUGH
from emovllm_offline.intervals import Estimate, wilson
from emovllm_offline.judges.text import distinct
from emovllm_offline.refinement.own_replies import LEAST_WORDS

# Of the scenarios with replies of its own, one in so many is not learnt from, but measures.
HELD_OUT = 8


@dataclass(frozen=True, slots=True)
class Obedience:
    """How a model replied when it was asked for each emotion in one style: the share that a judge accepted, with
    Wilson's interval; None where none was judged."""

    style: str
    shares: Mapping[str, Estimate | None]

    @property
    def mean(self) -> float:
        values = [0.0 if share is None else share.value for share in self.shares.values()]
        return sum(values) / len(values)

    @property
    def obeyed(self) -> list[str]:
        """The emotions in which at least half of the replies were accepted, and more than chance gives."""
        chance = 1 / (len(self.shares) + 1)
        return [name for name, of in self.shares.items() if of and of.value >= ENOUGH and of.low > chance]

    @property
    def wholly(self) -> bool:
        """Whether it obeys in every emotion."""
        return len(self.obeyed) == len(self.shares)


def asks(style: Style) -> bool:
    """Whether a model is asked for anything: by a frame that differs from the neutral one by more than its reply."""
    frames = (frame for of_emotion in style.emotions.values() for frame in of_emotion)
    return any(frame.model_copy(update={"reply": None}) != style.neutral for frame in frames)


def obedience(style: str, replies: Iterable[Reply], emotions: Sequence[str]) -> Obedience:
    """Of what `emovllm elicit` wrote; replies that the style itself holds show nothing of the model."""
    hits, counts = dict.fromkeys(emotions, 0), dict.fromkeys(emotions, 0)
    for reply in replies:
        if reply.style == style and reply.finish_reason != "given" and reply.match is not None:
            hits[reply.emotion] += reply.match
            counts[reply.emotion] += 1
    return Obedience(style, {name: wilson(hits[name], counts[name]) for name in emotions})


def best(tried: Sequence[Obedience]) -> Obedience | None:
    """The one with most emotions obeyed, then with the largest share; the first of equals. None of none."""
    return max(tried, key=lambda one: (len(one.obeyed), one.mean), default=None)


def own_replies(replies: Iterable[Reply], items: Sequence[Item]) -> dict[str, dict[str, str]]:
    """The accepted replies that the model wrote and that are worth learning from: by the user's message, the first of
    each emotion. They ended by themselves, and repeat no three words: a model would learn its loops."""
    users = {item.id: item.user for item in items}
    own: dict[str, dict[str, str]] = {}
    for reply in replies:
        if reply.match and reply.finish_reason == "stop" and reply.item in users and _whole(reply.reply):
            own.setdefault(users[reply.item], {}).setdefault(reply.emotion, reply.reply)
    return own


def _whole(text: str) -> bool:
    words = text.lower().split()
    return len(words) >= LEAST_WORDS and distinct(words, 3) == 1


def to_learn(
    written: Sequence[Example],
    own: Mapping[str, Mapping[str, str]],
    items: Sequence[Item],
    emotions: Sequence[str],
    obeyed: Collection[str],
    limit: int,
    held: int,
) -> list[Example]:
    """Messages with a reply in every emotion: the model's own where it obeys, the written one elsewhere.

    written: in the order in which they are taken, those `held_out` apart. own: of `own_replies`. items: what the model
    was asked. limit, held: messages to learn from, and to measure by. Where it obeys nowhere, the written ones as they
    are; else whole scenarios are held out, of all that there are.
    """
    if not obeyed:
        rows = [_with(example.id, example.user, example.replies, emotions) for example in written]
        marked = [example.held_out for example in written]
        found = [row for row in rows if row is not None]
        if len(found) < len(rows) or not any(marked):
            return found[: limit + held]
        learnt = [row for row, mark in zip(found, marked, strict=True) if not mark][:limit]
        return (
            learnt
            + [row.model_copy(update={"held_out": True}) for row, mark in zip(found, marked, strict=True) if mark][
                :held
            ]
        )
    by_user = {example.user: example for example in written if not example.held_out}
    ids = {item.user: item.id for item in items} | {user: example.id for user, example in by_user.items()}
    rows = []
    for user, name in ids.items():
        replies = dict(by_user[user].replies) if user in by_user else {}
        replies |= {emotion: text for emotion, text in own.get(user, {}).items() if emotion in obeyed}
        rows.append(_with(name, user, replies, emotions))
    found = [row for row in rows if row is not None][: limit + held]
    scenarios = list(dict.fromkeys(scenario(row.id) for row in found))
    apart = set(scenarios[::HELD_OUT])
    return [row.model_copy(update={"held_out": scenario(row.id) in apart}) for row in found]


def scenario(name: str) -> str:
    """Of an item or an example, by its id: events of one scenario are variations of one another."""
    return name.rpartition(".")[0] or name


def _with(name: str, user: str, replies: Mapping[str, str], emotions: Sequence[str]) -> Example | None:
    """None where a reply is missing."""
    if any(emotion not in replies for emotion in emotions):
        return None
    return Example(id=name, user=user, replies={emotion: replies[emotion] for emotion in emotions})
