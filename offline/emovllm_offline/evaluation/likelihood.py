"""The likelihoods of an evaluation's replies, question by question."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from emovllm_offline.evaluation.folder import Likelihood, Session
from emovllm_offline.evaluation.plan import Key
from emovllm_offline.model.likelihood import Likelihoods


class Question(NamedTuple):
    """One likelihood to ask for."""

    key: Key
    given: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


def answer(likelihoods: Likelihoods, todo: Sequence[Question], done: Callable[[Likelihood], None]) -> Session:
    """Hands `done` each answer as it comes. Returns: how fast it went."""
    start = time.perf_counter()
    for prompt, questions in by_prompt(todo):
        means = likelihoods.means(prompt, [question.tokens for question in questions])
        for question, nll in zip(questions, means, strict=True):
            done(Likelihood(key=question.key, given=question.given, nll=nll))
    tokens = sum(len(question.tokens) for question in todo)
    seconds = time.perf_counter() - start
    return Session(phase="perplexity", requests=len(todo), tokens=tokens, seconds=seconds, busy=1.0)


def by_prompt(todo: Sequence[Question]) -> Iterator[tuple[tuple[int, ...], list[Question]]]:
    """Questions of one prompt together, in the order in which prompts first come."""
    groups: dict[tuple[int, ...], list[Question]] = {}
    for question in todo:
        groups.setdefault(question.prompt, []).append(question)
    yield from groups.items()
