"""Elicitation: a model is brought to reply in each emotion, and a judge says where it did (arXiv 2510.11328).

A run appends to OUT/replies.jsonl chunk by chunk and, interrupted, goes on with the first chunk that is not whole.
OUT/elicit.json says what it was made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emovllm.errors import ElicitError, StoredError
from emovllm.progress import Bar
from emovllm_offline.data import sev
from emovllm_offline.data.prompts import messages, require_different
from emovllm_offline.data.styles import Style, common_emotions
from emovllm_offline.discovery.survival import Accepted, Reply, accepted
from emovllm_offline.endpoint.answer import FILTERED
from emovllm_offline.judges.judge import Judge, Verdict
from emovllm_offline.model.generate import Backend, Generation, Question
from emovllm_offline.storage.journal import Journal, Lines
from emovllm_offline.storage.json_lines import read_json_lines
from emovllm_offline.storage.settings import read_settings

REPLIES = "replies.jsonl"
SETTINGS = "elicit.json"
REMEDY = "choose another folder"
MAX_NEW_TOKENS = 100


@dataclass(frozen=True, slots=True)
class Task:
    """One reply to elicit."""

    item: sev.Item
    emotion: str
    style: str
    frame: int
    question: Question
    given: str | None  # the reply itself, where nothing but the reply elicits

    def prompt_digest(self) -> str:
        chat = messages(self.question.frame, self.question.user)
        return hashlib.sha256(json.dumps(chat, ensure_ascii=False).encode()).hexdigest()


def tasks(records: Sequence[sev.Record], styles: Sequence[Style]) -> list[Task]:
    """What a run does, in the order of its file: style by style, in each item by item, in each emotion by emotion.

    A frame's teacher-forced reply is left out of its prompt. Where the frame is neutral without it, there is nothing
    else that elicits: its reply is then judged as it stands.

    Raises: StyleError where the styles differ in their emotions.
    """
    emotions = common_emotions(styles)
    # Prompts of one style are of similar length, which keeps the padding of a batch small.
    return [
        Task(
            item,
            emotion,
            style.name,
            style.emotions[emotion].index(frame),
            Question(prompt, item.user),
            frame.reply if prompt == style.neutral else None,
        )
        for style in styles
        for index, item in enumerate(sev.expand(records))
        for emotion in emotions
        for frame in style.frames(emotion, index)
        for prompt in [frame.model_copy(update={"reply": None})]
    ]


def elicit(
    backend: Backend,
    records: Sequence[sev.Record],
    styles: Sequence[Style],
    judge: Judge,
    out: str | Path,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: bool = False,
) -> list[Reply]:
    """Elicits and judges what OUT/replies.jsonl does not hold yet; returns all of it.

    What could not be judged is judged again. The file of a run that was interrupted is, once finished, the same to the
    byte as without the interruption.

    Raises: StoredError where OUT holds a run of other inputs; ElicitError, StyleError, PromptError, EndpointError,
        JudgeError.
    """
    out = Path(out)
    if len({style.name for style in styles}) < len(styles):
        raise ElicitError("two styles have the same name")
    todo = tasks(records, styles)
    _require_different(backend, todo, styles)
    wanted = settings(backend, records, styles, judge, max_new_tokens)
    journal = Journal(out, wanted, name=SETTINGS, files=(REPLIES,), remedy=REMEDY, fresh=False)
    replies = journal.lines(REPLIES, Reply)
    _resume(replies, todo, backend.chunk)
    _judge_again(replies, judge)
    done = len(replies.rows)
    with Bar("replies", len(todo), done=done, unit="replies", shown=progress) as bar:
        for start in range(done, len(todo), backend.chunk):
            chunk = todo[start : start + backend.chunk]
            texts = list(_replies(backend, chunk, max_new_tokens))
            verdicts = _judged(judge, texts, [task.emotion for task in chunk])
            replies.append(
                *(
                    Reply(
                        item=task.item.id,
                        emotion=task.emotion,
                        style=task.style,
                        frame=task.frame,
                        prompt=task.prompt_digest(),
                        reply=text,
                        finish_reason=reason,
                        judge=judge.name,
                        **_judgement(verdict),
                    )
                    for task, (text, reason), verdict in zip(chunk, texts, verdicts, strict=True)
                )
            )
            bar.advance(len(chunk))
    return replies.rows


def _require_different(backend: Backend, todo: Sequence[Task], styles: Sequence[Style]) -> None:
    """Looks at each style's first item, as all have its frames. Raises: PromptError."""
    for style in styles:
        of_style = [task for task in todo if task.style == style.name and task.given is None]
        prompts: dict[str, tuple[Hashable, ...]] = {}
        for task in of_style:
            if task.item == of_style[0].item:
                prompts[task.emotion] = (*prompts.get(task.emotion, ()), backend.given(task.question))
        if len(prompts) > 1:
            require_different(list(prompts.values()), style.name)


def _judge_again(replies: Lines[Reply], judge: Judge) -> None:
    """Asks for the verdicts that the replies lack: their judge may have been out of reach, or of room."""
    gaps = [
        number
        for number, reply in enumerate(replies.rows)
        if reply.match is None and reply.finish_reason != FILTERED  # of those there is nothing to judge
    ]
    if not gaps:
        return
    lacking = [replies.rows[number] for number in gaps]
    verdicts = judge.judge([reply.reply for reply in lacking], [reply.emotion for reply in lacking])
    replies.replace(
        {
            number: reply.model_copy(update=_judgement(verdict))
            for number, reply, verdict in zip(gaps, lacking, verdicts, strict=True)
            if verdict.judged
        }
    )


def _judgement(verdict: Verdict) -> dict[str, Any]:
    """The fields of a reply that its judge decides."""
    return {
        "match": int(verdict.match) if verdict.judged else None,
        "label": verdict.label,
        "reason": verdict.reason,
    }


def _judged(judge: Judge, generations: Sequence[Generation], targets: Sequence[str]) -> list[Verdict]:
    """The verdicts on replies; those that an endpoint kept back have nothing to judge."""
    kept = [place for place, generation in enumerate(generations) if generation.finish_reason != FILTERED]
    verdicts = [Verdict.unjudged("the model's endpoint kept the reply back")] * len(generations)
    answers = judge.judge([generations[place].text for place in kept], [targets[place] for place in kept])
    for place, verdict in zip(kept, answers, strict=True):
        verdicts[place] = verdict
    return verdicts


def _replies(backend: Backend, chunk: Sequence[Task], max_new_tokens: int) -> Iterator[Generation]:
    asked = [task.question for task in chunk if task.given is None]
    generated = iter(backend.generate(asked, max_new_tokens) if asked else ())
    for task in chunk:
        yield next(generated) if task.given is None else Generation(task.given, "given")


def settings(
    backend: Backend, records: Sequence[sev.Record], styles: Sequence[Style], judge: Judge, max_new_tokens: int
) -> dict[str, Any]:
    """What a run is made from, as elicit.json holds it. It has no keys, URLs or places of files."""
    return {
        **_inputs(records, styles),
        "backend": dict(backend.config),
        "judge": {"name": judge.name, **judge.config},
        "max_new_tokens": max_new_tokens,
    }


def _inputs(records: Sequence[sev.Record], styles: Sequence[Style]) -> dict[str, Any]:
    return {
        "data": {"sha256": sev.digest(records), "scenarios": len(records)},
        "styles": [{"name": style.name, "sha256": style.digest()} for style in styles],
    }


def _resume(replies: Lines[Reply], todo: Sequence[Task], chunk: int) -> None:
    """Keeps the replies that are there, up to the last whole chunk.

    A chunk is done again as a whole, since a model's rounding may depend on what shares its batch.
    Raises: StoredError where they are not the run's.
    """
    if len(replies.rows) > len(todo):
        raise StoredError(f"{replies.path} has more replies than the run: {REMEDY}")
    for number, (reply, task) in enumerate(zip(replies.rows, todo, strict=False), 1):
        expected = (task.item.id, task.emotion, task.style, task.frame, task.prompt_digest())
        if (reply.item, reply.emotion, reply.style, reply.frame, reply.prompt) != expected:
            raise StoredError(f"{replies.path}, line {number}: not the reply that belongs there; {REMEDY}")
    if len(replies.rows) < len(todo):
        replies.keep(len(replies.rows) // chunk * chunk)


def load_replies(path: str | Path) -> list[Reply]:
    """The replies of a file.

    Raises: ElicitError, naming the file and the line.
    """
    return [reply for _, reply in read_json_lines(Path(path), Reply, ElicitError)]


def load_accepted(out: str | Path, records: Sequence[sev.Record], styles: Sequence[Style]) -> Accepted:
    """The accepted frames of a finished run's complete groups, for a discovery from the same data and styles.

    Raises: ElicitError where the run is of other data or styles, or is not finished; StoredError.
    """
    out = Path(out)
    theirs = read_settings(out / SETTINGS, REMEDY)
    if theirs is None:
        raise ElicitError(f"{out} holds no elicitation run")
    for name, value in _inputs(records, styles).items():
        if theirs.get(name) != value:
            raise ElicitError(f"the run in {out} was made with other {name}")
    replies = load_replies(out / REPLIES)
    if len(replies) != len(tasks(records, styles)):
        raise ElicitError(f"the run in {out} is not finished: repeat its command to continue it")
    return accepted(replies)
