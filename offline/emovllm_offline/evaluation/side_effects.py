"""What an emotion costs beside its tone: sums, facts, formats, refusals and false claims, with it and without."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

import emovllm
from emovllm.errors import EvaluationError
from emovllm.spec import Frozen
from emovllm_offline.data.side_effects import Item, by_kind, items_digest
from emovllm_offline.data.styles import Frame
from emovllm_offline.endpoint.answer import FILTERED
from emovllm_offline.evaluation.checks import Outcome, outcome
from emovllm_offline.evaluation.evaluate import collect_replies
from emovllm_offline.evaluation.folder import Folder, Reply
from emovllm_offline.evaluation.plan import (
    CIRCUITS,
    DECODING,
    NONE,
    Key,
    Served,
    Task,
    fields_of,
    plan_digest,
    refuse_too_strong,
)
from emovllm_offline.evaluation.target import Where, find_target
from emovllm_offline.intervals import by_group, mean_change
from emovllm_offline.reading.results import Figure
from emovllm_offline.storage.results_file import ResultsFile

# What the replies were asked with.
ASKED = "asked.json"
# Of an effect over all emotions, or of none.
ALL, PLAIN = "all", "plain"


class Checked(Frozen):
    """One reply. emotion: PLAIN, at strength 0, of one that nothing was injected into. cut: at the token limit."""

    item: str
    kind: str
    emotion: str
    strength: float
    outcome: Outcome
    cut: bool
    user: str
    text: str


class Effect(Frozen):
    """Replies to the items of a kind in an emotion (or PLAIN, or ALL of them) at a strength. right: the share, with its
    interval over items. none: the share in which what counts is not there. change: of `right` from the plain replies to
    the same items; None of these."""

    kind: str
    emotion: str
    strength: float
    replies: int
    right: Figure
    none: float
    change: Figure | None = None


class SideEffects(ResultsFile):
    """All of `side-effects.json`. items: how many there are of each kind."""

    FILE = "side-effects.json"

    format: Literal["emovllm-side-effects"] = "emovllm-side-effects"
    format_version: Literal[1] = 1
    command: str
    emovllm: str
    model: str
    circuit: str
    settings: dict[str, Any]
    items: dict[str, int]
    emotions: tuple[str, ...]
    strengths: tuple[float, ...]
    effects: tuple[Effect, ...]
    replies: tuple[Checked, ...]

    def of(self, kind: str, emotion: str, strength: float = 0.0) -> Effect:
        """Raises: KeyError where there is none."""
        for effect in self.effects:
            if (effect.kind, effect.emotion, effect.strength) == (kind, emotion, strength):
                return effect
        raise KeyError((kind, emotion, strength))


def measure(
    where: Where,
    items: Sequence[Item],
    strengths: Sequence[float],
    out: Path,
    *,
    max_tokens: int = 100,
    fresh: bool = False,
    command: str = "",
) -> SideEffects:
    """Asks every item plain and in each emotion at each strength, in one mixed batch, and checks the replies by rule.

    out: of the replies, from which the same call goes on. Raises: EvaluationError, EndpointError, CircuitError,
    DefaultModelError, StoredError, OSError.
    """
    strengths = sorted(strengths)
    _check(strengths)
    target = find_target(where, steering=False)
    planned = plan(items, strengths, target.served)
    settings = {
        "circuit": target.served.circuit,
        "emotions": list(target.served.strengths),
        "strengths": strengths,
        "decoding": {**DECODING, "max_tokens": max_tokens},
        "requests": plan_digest(planned),
    }
    folder = Folder(out, settings, fresh, name=ASKED)
    collect_replies(where, target, planned, folder, max_tokens)
    known = {item.id: item for item in items}
    replies = tuple(_checked(task, known[task.key.message], folder.replies[task.key]) for task in planned)
    return SideEffects(
        command=command,
        emovllm=emovllm.__version__,
        model=target.name,
        circuit=target.served.circuit,
        # Replies are asked for once, whatever is then said to be right.
        settings={**settings, "items": {"sha256": items_digest(items), "count": len(items)}},
        items={kind: len(of_kind) for kind, of_kind in by_kind(items).items()},
        emotions=tuple(target.served.strengths),
        strengths=tuple(strengths),
        effects=tuple(effects(replies)),
        replies=replies,
    )


def plan(items: Sequence[Item], strengths: Sequence[float], served: Served) -> list[Task]:
    """Item by item, each alone: no system prompt, no turns before it. Raises: EvaluationError."""
    refuse_too_strong(strengths, served)
    keys = [
        (item, key)
        for item in items
        for key in (
            Key(item.id, NONE),
            *(Key(item.id, CIRCUITS, emotion, strength) for emotion in served.strengths for strength in strengths),
        )
    ]
    return [Task(key, item.kind, item.user, Frame(), fields_of(key), item.id) for item, key in keys]


def _check(strengths: Sequence[float]) -> None:
    """Raises: EvaluationError."""
    if not strengths or not all(strength and math.isfinite(strength) for strength in strengths):
        raise EvaluationError("strengths must be finite and not 0, and at least one")
    if len(set(strengths)) < len(strengths):
        raise EvaluationError("a strength is named twice")


def effects(replies: Sequence[Checked]) -> Iterator[Effect]:
    """Of each kind: the plain replies, then of each strength those of all emotions and of each."""
    for kind in dict.fromkeys(reply.kind for reply in replies):
        of_kind = [reply for reply in replies if reply.kind == kind]
        plain = {reply.item: reply.outcome == "right" for reply in of_kind if reply.emotion == PLAIN}
        yield _effect([reply for reply in of_kind if reply.emotion == PLAIN], PLAIN, {})
        steered = [reply for reply in of_kind if reply.emotion != PLAIN]
        for strength in dict.fromkeys(reply.strength for reply in steered):
            at = [reply for reply in steered if reply.strength == strength]
            yield _effect(at, ALL, plain)
            for emotion in dict.fromkeys(reply.emotion for reply in at):
                yield _effect([reply for reply in at if reply.emotion == emotion], emotion, plain)


def _effect(replies: Sequence[Checked], emotion: str, plain: Mapping[str, bool]) -> Effect:
    """plain: whether each item's plain reply is right; empty for those themselves."""
    right, groups = [reply.outcome == "right" for reply in replies], [reply.item for reply in replies]
    return Effect(
        kind=replies[0].kind,
        emotion=emotion,
        strength=replies[0].strength,
        replies=len(replies),
        right=Figure.of(by_group(right, groups)),
        none=sum(reply.outcome == "none" for reply in replies) / len(replies),
        change=_change(right, groups, plain) if plain else None,
    )


def _change(right: Sequence[bool], groups: Sequence[str], plain: Mapping[str, bool]) -> Figure:
    """In pairs, of each item over all of its replies."""
    of_items: dict[str, list[bool]] = {}
    for item, is_right in zip(groups, right, strict=True):
        of_items.setdefault(item, []).append(is_right)
    return Figure.of(mean_change(np.array([np.mean(found) - plain[item] for item, found in of_items.items()])))


def _checked(task: Task, item: Item, reply: Reply) -> Checked:
    return Checked(
        item=item.id,
        kind=item.kind,
        emotion=task.key.emotion or PLAIN,
        strength=task.key.strength,
        outcome=outcome(item, reply.text, kept_back=reply.finish_reason == FILTERED),
        cut=reply.finish_reason == "length",
        user=item.user,
        text=reply.text,
    )
