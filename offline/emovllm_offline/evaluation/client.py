"""A running emovllm server, as an evaluation uses it: replies and likelihoods, a bounded number at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import openai

from emovllm.errors import EndpointError, EvaluationError, RefusedByEndpoint
from emovllm_offline.data.prompts import TEMPLATE_OPTIONS, messages
from emovllm_offline.evaluation.folder import Reply, Session
from emovllm_offline.evaluation.plan import DECODING, Task
from emovllm_offline.judges.endpoint import translated

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(slots=True)
class Connection:
    """How to reach a server. The key goes to it alone, and is written nowhere."""

    base_url: str
    model: str | None = None  # None: the first that it lists
    key: str = field(default="none", repr=False)
    concurrency: int = 64
    retries: int = 6
    timeout: float = 600.0  # seconds of one request, its wait in the server's queue included


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says of itself. strengths: the largest `emotion_strength` of each emotion."""

    model: str
    circuit: str  # its digest
    strengths: dict[str, float]
    methods: tuple[str, ...]


class EmotionClient:
    """Requests to one server; made by `connect`."""

    def __init__(self, client: openai.AsyncOpenAI, connection: Connection) -> None:
        self._client = client
        self._connection = connection
        self.model = connection.model or ""
        # Templates without a system role get its text in the first user message.
        self._merge_system = False

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
            return Served(
                self.model,
                "+".join(circuit["digest"] for circuit in said["circuits"]),
                {emotion["id"]: float(emotion["max_strength"]) for emotion in said["data"]},
                tuple(said["methods"]),
            )
        except (KeyError, TypeError, ValueError):
            raise EvaluationError("the server has no circuit") from None

    async def reply(self, task: Task, max_tokens: int) -> Reply:
        """Raises: EndpointError."""
        try:
            return await self._reply(task, max_tokens)
        except RefusedByEndpoint:
            if task.frame.system is None or self._merge_system:
                raise
        self._merge_system = True
        return await self._reply(task, max_tokens)

    async def _reply(self, task: Task, max_tokens: int) -> Reply:
        with translated(self.model):
            answer = await self._client.chat.completions.create(
                model=self.model,
                messages=messages(task.frame, task.user, self._merge_system),  # type: ignore[arg-type]
                max_tokens=max_tokens,
                temperature=DECODING["temperature"],
                extra_body={
                    **DECODING,
                    **task.fields,
                    "return_token_ids": True,
                    "chat_template_kwargs": TEMPLATE_OPTIONS,
                },
            )
            choice = answer.choices[0]
            tokens = list((choice.model_extra or {})["token_ids"])
            prompt = list((answer.model_extra or {})["prompt_token_ids"])
        reason = choice.finish_reason or ""
        return Reply(
            key=task.key,
            text=(choice.message.content or "").strip(),
            finish_reason=reason,
            prompt=tuple(prompt),
            tokens=tuple(tokens[:-1] if reason == "stop" else tokens),
        )

    async def likelihood(self, prompt: Sequence[int], tokens: Sequence[int]) -> float:
        """Mean negative log-probability of `tokens` after `prompt`, unsteered, in nats. Raises: EndpointError."""
        ids = [*prompt, *tokens]
        with translated(self.model):
            answer = await self._client.completions.create(
                model=self.model,
                prompt=ids,
                max_tokens=1,
                temperature=0,
                extra_body={"prompt_logprobs": 0, "repetition_penalty": 1.0},
            )
            steps = (answer.choices[0].model_extra or {})["prompt_logprobs"]
            known = [
                float(step[str(token)]["logprob"]) for step, token in zip(steps[len(prompt) :], tokens, strict=True)
            ]
        return -sum(known) / len(known)


@contextlib.asynccontextmanager
async def connect(connection: Connection) -> AsyncIterator[EmotionClient]:
    async with openai.AsyncOpenAI(
        base_url=connection.base_url,
        api_key=connection.key,
        max_retries=connection.retries,
        timeout=connection.timeout,
    ) as client:
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
