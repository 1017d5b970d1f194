"""Which groups survived their judge: one counts only when every emotion was accepted (arXiv 2510.11328)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from emovllm.errors import JudgeError, TooFewError
from emovllm.files import write_json
from emovllm_offline.data.styles import load_style, packaged_styles
from emovllm_offline.reporting.tables import Table

# Of the paper's 480 groups 448 survived. Below a dozen the mean differences are mostly those of single scenarios.
MINIMUM = 12


class Reply(BaseModel):
    """One line of replies.jsonl: a judged reply."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    item: str  # the scenario-event, as data.Item.id
    emotion: str
    style: str
    frame: int  # index among the style's frames of the emotion
    prompt: str  # sha256 of the messages
    reply: str
    finish_reason: str  # "stop", "length", "content_filter", or "given" where the style itself holds the reply
    judge: str
    match: Literal[0, 1] | None  # None where it could not be judged
    label: str | None
    reason: str


# item id -> style -> emotion -> the frames whose replies were accepted, with these replies
Accepted = dict[str, dict[str, dict[str, dict[int, str]]]]


def accepted(replies: Iterable[Reply]) -> Accepted:
    """The accepted frames of the complete groups, and the replies.

    A group is one scenario-event in one style, complete when each emotion that the replies name has an accepted frame
    in it. Emotions are compared within a style only: the difference between two styles is no emotion.
    """
    replies = list(replies)
    emotions = {reply.emotion for reply in replies}
    found: Accepted = {}
    for reply in replies:
        if reply.match:
            group = found.setdefault(reply.item, {}).setdefault(reply.style, {})
            group.setdefault(reply.emotion, {})[reply.frame] = reply.reply
    complete = {
        item: {style: group for style, group in styles.items() if set(group) == emotions}
        for item, styles in found.items()
    }
    return {item: styles for item, styles in complete.items() if styles}


def complete_groups(replies: Iterable[Reply]) -> set[str]:
    """The ids of the scenario-events that have a complete group in at least one style."""
    return set(accepted(replies))


@dataclass(frozen=True, slots=True)
class Survival:
    """How many replies a judge accepted.

    accepted, judged and unjudged (which the judge could not judge): by style and emotion; complete: by style,
    scenario-events accepted in every emotion.
    """

    judge: str
    items: int
    complete_items: int  # in at least one style
    complete: dict[str, int]
    accepted: dict[str, dict[str, int]]
    judged: dict[str, dict[str, int]]
    unjudged: dict[str, dict[str, int]]

    @classmethod
    def of(cls, replies: Sequence[Reply]) -> Survival:
        """Raises: ValueError where there are no replies; JudgeError where none of them was judged."""
        if not replies:
            raise ValueError("there are no replies to count")
        styles = list(dict.fromkeys(reply.style for reply in replies))
        emotions = list(dict.fromkeys(reply.emotion for reply in replies))
        if all(reply.match is None for reply in replies):
            first = replies[0]
            raise JudgeError(f"the judge {first.judge} could judge no reply, the first because: {first.reason}")
        counts, judged, unjudged = ({style: dict.fromkeys(emotions, 0) for style in styles} for _ in range(3))
        for reply in replies:
            counts[reply.style][reply.emotion] += reply.match or 0
            judged[reply.style][reply.emotion] += reply.match is not None
            unjudged[reply.style][reply.emotion] += reply.match is None
        groups = accepted(replies)
        return cls(
            judge=replies[0].judge,
            items=len({reply.item for reply in replies}),
            complete_items=len(groups),
            complete={style: sum(style in of_item for of_item in groups.values()) for style in styles},
            accepted=counts,
            judged=judged,
            unjudged=unjudged,
        )

    def rate(self, emotion: str) -> float:
        """The share of an emotion's judged replies that was accepted, over all styles; 0 where none was judged."""
        judged = sum(of_style[emotion] for of_style in self.judged.values())
        return sum(of_style[emotion] for of_style in self.accepted.values()) / judged if judged else 0.0

    def emotions(self) -> list[str]:
        return list(next(iter(self.judged.values())))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())

    def table(self) -> Table:
        """Emotions by styles: accepted of judged."""
        rows = [
            [emotion, *(f"{self.accepted[style][emotion]} of {self.judged[style][emotion]}" for style in self.judged)]
            for emotion in self.emotions()
        ]
        foot = [["complete groups", *(f"{count} of {self.items}" for count in self.complete.values())]]
        unjudged = [sum(of_style.values()) for of_style in self.unjudged.values()]
        if any(unjudged):
            foot.append(["not judged", *map(str, unjudged)])
        return Table(["emotion", *self.judged], rows, title=f"accepted by {self.judge}", foot=foot)

    def print(self) -> None:
        self.table().print()


def require(survival: Survival, minimum: int = MINIMUM) -> None:
    """Refuses to go on with too few complete scenario-events.

    Raises: TooFewError, naming the emotions that failed and what to try.
    """
    if survival.complete_items >= minimum:
        return
    rates = {emotion: survival.rate(emotion) for emotion in survival.emotions()}
    worst = sorted(rates, key=lambda emotion: rates[emotion])
    # Where every emotion does well by itself, the weakest is still where to begin.
    failed = [emotion for emotion in worst if rates[emotion] < 0.5] or worst[:1]
    other = [
        style
        for style in packaged_styles()
        if style not in survival.judged and set(load_style(style).emotions) == set(rates)
    ]
    advice = [
        f"another elicitation style (--style {' or '.join(other)})" if other else "an elicitation style of your own",
        f"another judge than {survival.judge}",
        "a larger model",
    ]
    if survival.items < minimum:
        advice.insert(0, f"more scenarios: {survival.items} scenario-events cannot give {minimum} groups")
    raise TooFewError(
        f"{survival.complete_items} of {survival.items} scenario-events were accepted in every emotion, "
        f"{minimum} are needed. Accepted least: "
        + ", ".join(f"{emotion} ({rates[emotion]:.0%})" for emotion in failed)
        + ". Try "
        + "; or ".join(advice)
        + "."
    )
