"""A running emovllm server, as an evaluation uses it: replies and likelihoods, a bounded number at a time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import openai

from emovllm.errors import EndpointError, EvaluationError, FilteredByEndpoint
from emovllm.readout import Reading
from emovllm_offline.data.prompts import TEMPLATE_OPTIONS, messages
from emovllm_offline.endpoint.answer import FILTERED, answer_of
from emovllm_offline.endpoint.client import create_chat, open_client, translated
from emovllm_offline.endpoint.dialect import Dialect
from emovllm_offline.evaluation.folder import Reply, ReplyReadout, Session
from emovllm_offline.evaluation.plan import DECODING, PLAIN, Served, Task

In = TypeVar("In")
Out = TypeVar("Out")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Connection:
    """How to reach a server. The key goes to it alone, and is written nowhere."""

    base_url: str
    model: str | None = None  # None: the first that it lists
    key: str = field(default="none", repr=False)
    circuit: str | None = None  # the server's name of the one to evaluate; None: all of them
    concurrency: int = 64
    retries: int = 6
    timeout: float = 600.0  # seconds of one request, its wait in the server's queue included
    readout: bool = False  # whether each reply is to be read while it is written


class EmotionClient:
    """Requests to one server; made by `connect`."""

    def __init__(self, client: openai.AsyncOpenAI, connection: Connection) -> None:
        self._client = client
        self._connection = connection
        # Of chats, and of completions.
        self._dialect, self._scoring = Dialect(), Dialect()
        self._told_of_thinking = False
        self.model = connection.model or ""

    @property
    def notes(self) -> tuple[str, ...]:
        """How requests had to depart from what was planned."""
        return self._dialect.notes

    async def describe(self) -> Served:
        """Raises: EndpointError, EvaluationError where it serves no emotions."""
        with translated(self.model):
            if not self.model:
                self.model = (await self._client.models.list()).data[0].id
        try:
            with translated(self.model):
                said: Any = await self._client.get("/emotions", cast_to=object)
        except EndpointError as error:
            raise EvaluationError(f"no emotions are served there: {error}") from None
        try:
            return _served(self.model, said, self._connection.circuit)
        except (KeyError, TypeError, ValueError):
            raise EvaluationError("the server has no circuit") from None

    async def reply(self, task: Task, max_tokens: int) -> Reply:
        """One that a content filter keeps back is empty. Raises: EndpointError."""
        body = {
            "model": self.model,
            "messages": messages(task.frame, task.user),
            "max_tokens": max_tokens,
            **DECODING,
            **(task.fields or PLAIN),
            **({"emotion_readout": "reply"} if self._connection.readout else {}),
            "return_token_ids": True,
            "chat_template_kwargs": TEMPLATE_OPTIONS,
        }
        try:
            with translated(self.model):
                completion = await self._dialect.ask(body, functools.partial(create_chat, self._client))
                answer = answer_of(completion)
                more = completion.choices[0].model_extra or {}
                tokens = list(more["token_ids"])
                readout = _readout(more) if self._connection.readout else None
                prompt = tuple((completion.model_extra or {})["prompt_token_ids"])
        except FilteredByEndpoint:
            return Reply(key=task.key, text="", finish_reason=FILTERED, prompt=(), tokens=())
        if answer.cut and answer.thought and not answer.text:
            self._tell_of_thinking()
        return Reply(
            key=task.key,
            text=answer.text.strip(),
            finish_reason=answer.finish_reason,
            prompt=prompt,
            tokens=tuple(tokens[:-1] if answer.finish_reason == "stop" else tokens),
            readout=readout,
        )

    async def _complete(self, body: dict[str, Any]) -> Any:
        others = {name: value for name, value in body.items() if name not in ("model", "prompt")}
        return await self._client.completions.create(model=body["model"], prompt=body["prompt"], extra_body=others)

    def _tell_of_thinking(self) -> None:
        if not self._told_of_thinking:
            logger.warning("replies are cut off in their thinking, and empty: give a larger --max-tokens")
        self._told_of_thinking = True

    async def likelihood(self, prompt: Sequence[int], tokens: Sequence[int]) -> float:
        """Mean negative log-probability of `tokens` after `prompt`, unsteered, in nats. Raises: EndpointError."""
        body = {
            "model": self.model,
            "prompt": [*prompt, *tokens],
            "max_tokens": 1,
            "temperature": 0,
            **PLAIN,
            "prompt_logprobs": 0,
            "repetition_penalty": 1.0,
        }
        with translated(self.model):
            answer = await self._scoring.ask(body, self._complete)
            steps = (answer.choices[0].model_extra or {})["prompt_logprobs"]
            known = [
                float(step[str(token)]["logprob"]) for step, token in zip(steps[len(prompt) :], tokens, strict=True)
            ]
        return -sum(known) / len(known)


def _readout(choice: Mapping[str, Any]) -> ReplyReadout:
    """Raises: EvaluationError where there is none."""
    if choice.get("emotion_readout") is None:
        raise EvaluationError("a reply came without what was read: does what is in front of the server take it out?")
    return ReplyReadout.model_validate(choice["emotion_readout"])


def _served(model: str, page: Any, circuit: str | None) -> Served:
    """What a server's page of emotions says. Raises: EvaluationError where it has no such circuit."""
    circuits, emotions = page["circuits"], page["data"]
    if circuit is not None:
        names = [card["id"] for card in circuits]
        if circuit not in names:
            raise EvaluationError(f"the server has no circuit {circuit!r}: give --circuit one of {', '.join(names)}")
        circuits = [card for card in circuits if card["id"] == circuit]
        emotions = [card for card in emotions if card["circuit"] == circuit]
    return Served(
        model,
        "+".join(card["digest"] for card in circuits),
        {card["id"]: float(card["max_strength"]) for card in emotions},
        tuple(page["methods"]),
        Reading(read["probe"], read["layer"], tuple(read["labels"])) if (read := page.get("reading")) else None,
    )


@contextlib.asynccontextmanager
async def connect(connection: Connection) -> AsyncIterator[EmotionClient]:
    async with open_client(connection.base_url, connection.key, connection.retries, connection.timeout) as client:
        yield EmotionClient(client, connection)


async def saturate(
    phase: str,
    function: Callable[[In], Awaitable[Out]],
    inputs: Sequence[In],
    concurrency: int,
    done: Callable[[Out], int],
    finish: Callable[[Session], None],
) -> None:
    """`function` of every input, `concurrency` at a time.

    done: takes each result at once, and gives its tokens. finish: is told how fast it went, also when interrupted.
    Raises: the first error, after the other requests were given up.
    """
    waiting = iter(inputs)
    start = time.perf_counter()
    count = tokens = 0
    busy = 0.0

    async def work() -> None:
        nonlocal count, tokens, busy
        for value in waiting:
            began = time.perf_counter()
            result = await function(value)
            busy += time.perf_counter() - began
            tokens += done(result)
            count += 1

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(inputs))):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        seconds = time.perf_counter() - start
        if count:
            share = busy / seconds / concurrency
            finish(Session(phase=phase, requests=count, tokens=tokens, seconds=seconds, busy=share))
