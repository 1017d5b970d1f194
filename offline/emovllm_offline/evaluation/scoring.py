"""From replies to scored replies: judged, measured, compared with the unsteered and the prompted ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emovllm_offline.endpoint.answer import FILTERED
from emovllm_offline.evaluation.folder import INSTRUCTION, NEUTRAL, Folder, Reply, ReplyReadout
from emovllm_offline.evaluation.plan import NONE, PROMPTING, Key, Task, plain_name
from emovllm_offline.judges.judge import Verdict, require_judged
from emovllm_offline.judges.readout import ReadoutJudge, ReplyJudge
from emovllm_offline.judges.text import TextMetrics, regime, text_metrics


@dataclass(frozen=True, slots=True)
class Scored:
    """One reply and all that is known of it.

    verdicts: by judge, then by target: the reply's own emotion, or each emotion for an unsteered reply. Those that are
    not `judged` count nowhere.
    perplexity: given the neutral prompt, over that of the message's own unsteered reply. fluency: given the prompt that
    asks for the emotion, over that of the prompted reply. relevance: cosine of the embeddings of reply and message.
    Each is None where it cannot be had. group: of messages that are alike (`Message`).
    """

    key: Key
    valence: str
    user: str
    text: str
    capped: bool
    tokens: int
    metrics: TextMetrics
    verdicts: dict[str, dict[str, Verdict]]
    perplexity: float | None
    fluency: float | None
    relevance: float | None
    regime: str
    group: str = ""
    kept_back: bool = False  # by an endpoint's content filter: there is nothing to measure
    readout: ReplyReadout | None = None

    def label(self, judge: str) -> str | None:
        """What a blind judge takes the reply for."""
        return next(iter(self.verdicts[judge].values())).label

    def missing(self, judge: str) -> Verdict | None:
        """The first of the judge's verdicts that is none."""
        return next((verdict for verdict in self.verdicts[judge].values() if not verdict.judged), None)

    def to_json(self) -> dict[str, Any]:
        """A line of scored.jsonl."""
        return {
            **self.key._asdict(),
            "valence": self.valence,
            "group": self.group,
            "user": self.user,
            "reply": self.text,
            "capped": self.capped,
            "tokens": self.tokens,
            **asdict(self.metrics),
            "perplexity": self.perplexity,
            "fluency": self.fluency,
            "relevance": self.relevance,
            "regime": self.regime,
            "labels": {judge: self.label(judge) for judge in self.verdicts},
            "matches": {
                judge: {target: said.match if said.judged else None for target, said in of.items()}
                for judge, of in self.verdicts.items()
            },
            **({} if self.readout is None else {"readout": self.readout.model_dump(include={"reply", "prompt"})}),
        }


def score(
    planned: Sequence[Task], folder: Folder, judges: Sequence[ReplyJudge], emotions: Sequence[str]
) -> list[Scored]:
    """Every planned reply, in the plan's order; the folder has them all.

    Raises: JudgeError where a judge could judge none of them; EndpointError.
    """
    replies = [folder.replies[task.key] for task in planned]
    texts = [reply.text for reply in replies]
    verdicts = {judge.name: judged(judge, planned, replies, emotions) for judge in judges}
    relevances = relevance_of(planned, texts)
    scored = []
    for i, task in enumerate(planned):
        reply = folder.replies[task.key]
        measured = text_metrics(reply.text, reply.tokens)
        fluency = _ratio(folder, task.key, _prompted(task.key), INSTRUCTION) if task.key.emotion else None
        scored.append(
            Scored(
                key=task.key,
                valence=task.valence,
                user=task.user,
                text=reply.text,
                capped=reply.finish_reason == "length",
                tokens=len(reply.tokens),
                metrics=measured,
                verdicts={name: of_judge[i] for name, of_judge in verdicts.items()},
                perplexity=_ratio(folder, task.key, Key(task.key.message, NONE), NEUTRAL),
                fluency=fluency,
                relevance=None if relevances is None else relevances[i],
                regime=regime(reply.text, measured.repetition, fluency),
                group=task.group,
                kept_back=reply.finish_reason == FILTERED,
                readout=reply.readout,
            )
        )
    return scored


def judged(
    judge: ReplyJudge, planned: Sequence[Task], replies: Sequence[Reply], emotions: Sequence[str]
) -> list[dict[str, Verdict]]:
    """A judge's verdicts on every reply, by target. Raises: JudgeError where it could judge none; EndpointError."""
    kept_back = Verdict.unjudged("the model's endpoint kept the reply back")
    by_target: list[dict[str, Verdict]] = [
        dict.fromkeys([task.key.emotion] if task.key.emotion else emotions, kept_back) for task in planned
    ]
    questions = [
        (i, target)
        for i, (reply, targets) in enumerate(zip(replies, by_target, strict=True))
        if reply.finish_reason != FILTERED
        for target in targets
    ]
    targets = [plain_name(target) for _, target in questions]
    if isinstance(judge, ReadoutJudge):
        verdicts = judge.judge_read([_read(replies[i]) for i, _ in questions], targets)
    else:
        verdicts = judge.judge([replies[i].text for i, _ in questions], targets)
    for (i, target), verdict in zip(questions, verdicts, strict=True):
        by_target[i][target] = verdict
    require_judged(judge.name, [verdict for of_reply in by_target for verdict in of_reply.values()])
    return by_target


def _read(reply: Reply) -> dict[str, float]:
    return {} if reply.readout is None else reply.readout.reply


def relevance_of(planned: Sequence[Task], texts: Sequence[str]) -> list[float] | None:
    """Of each reply to its message; None without the extra `evaluate`, whose model embeds them."""
    from emovllm.errors import EmbeddingError
    from emovllm_offline.judges.embeddings import relevance

    try:
        return [float(value) for value in relevance([task.user for task in planned], texts)]
    except EmbeddingError:
        return None


def _prompted(key: Key) -> Key:
    return Key(key.message, PROMPTING, key.emotion)


def _ratio(folder: Folder, key: Key, reference: Key, given: str) -> float | None:
    """Perplexity of a reply over that of another, given the same prompt."""
    ours, theirs = folder.likelihoods.get((key, given)), folder.likelihoods.get((reference, given))
    # Bounded, so that a ratio stays a number in JSON.
    return math.exp(min(ours.nll - theirs.nll, 700.0)) if ours and theirs else None


def unjudged(scored: Sequence[Scored], judges: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By judge, where there are any: the number of replies that lack a verdict, and the first one's reason."""
    counts = {}
    for judge in judges:
        lacking = [verdict for reply in scored if (verdict := reply.missing(judge)) is not None]
        if lacking:
            counts[judge] = {"replies": len(lacking), "first_reason": lacking[0].reason}
    return counts


def agreements(scored: Sequence[Scored], judges: Sequence[str]) -> list[dict[str, Any]]:
    """Cohen's kappa of every two judges, over the replies that have a target."""
    from emovllm_offline.judges.agreement import agreement

    aimed = [reply for reply in scored if reply.key.emotion]
    verdicts: Mapping[str, list[Verdict]] = {
        judge: [reply.verdicts[judge][reply.key.emotion] for reply in aimed] for judge in judges
    }
    return [
        {"judges": [one, other], **asdict(agreement(verdicts[one], verdicts[other]))}
        for i, one in enumerate(judges)
        for other in judges[i + 1 :]
        if any(
            reply.verdicts[one][reply.key.emotion].judged and reply.verdicts[other][reply.key.emotion].judged
            for reply in aimed
        )
    ]
