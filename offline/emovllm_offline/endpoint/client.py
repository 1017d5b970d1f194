"""Chat requests to any OpenAI-compatible endpoint: a bounded number at a time, retried when the server is busy."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import openai

from emovllm.environment import reach_loopback_directly
from emovllm.errors import EmovllmError, EndpointError, FilteredByEndpoint, RefusedByEndpoint
from emovllm_offline.endpoint.answer import ROOMS, Answer, answer_of
from emovllm_offline.endpoint.dialect import Body, Dialect, is_filter
from emovllm_offline.endpoint.loops import wait_for

In = TypeVar("In")
Out = TypeVar("Out")
Messages = list[dict[str, str]]

logger = logging.getLogger(__name__)


class Endpoint:
    """One model behind an OpenAI-compatible endpoint.

    The key is read from OPENAI_API_KEY when a request is made; it is kept and written nowhere. The client repeats
    requests that meet 408, 409, 429, 5xx, a timeout or no connection, waiting longer each time or as long as the
    server says. What the endpoint refuses of a request is left out of those that follow (`Dialect`).
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        concurrency: int = 8,
        retries: int = 6,
        timeout: float = 120.0,
    ) -> None:
        """base_url: None for OpenAI's own, or what OPENAI_BASE_URL says; timeout: seconds of one request."""
        if concurrency < 1:
            raise EndpointError(f"concurrency must be at least 1, got {concurrency}")
        self.model = model
        self.concurrency = concurrency
        self.dialect = Dialect()
        self.room = 0  # index of ROOMS
        self._base_url, self._retries, self._timeout = base_url, retries, timeout

    def map(
        self,
        function: Callable[[Chat, In], Awaitable[Out]],
        inputs: Sequence[In],
        done: Callable[[int, Out], None] = lambda place, result: None,
    ) -> list[Out]:
        """`function(chat, input)` of every input, at most `concurrency` at a time; results in the inputs' order.

        done: is given each result, with its input's place, as it comes.
        The first error ends the other requests and is raised.
        """

        async def all_of_them() -> list[Out]:
            limit = asyncio.Semaphore(self.concurrency)
            # Servers that want no key want the header all the same.
            key = os.environ.get("OPENAI_API_KEY") or "none"
            async with open_client(self._base_url, key, self._retries, self._timeout) as client:

                async def one(place: int, value: In) -> Out:
                    async with limit:
                        result = await function(Chat(client, self), value)
                    done(place, result)
                    return result

                try:
                    async with asyncio.TaskGroup() as group:
                        tasks = [group.create_task(one(place, value)) for place, value in enumerate(inputs)]
                except ExceptionGroup as errors:
                    raise errors.exceptions[0] from None
                return [task.result() for task in tasks]

        return wait_for(all_of_them())


def open_client(base_url: str | None, key: str, retries: int, timeout: float) -> openai.AsyncOpenAI:
    """A client of an endpoint; to one of this machine it goes directly, whatever proxy the environment names."""
    reach_loopback_directly()
    return openai.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=retries, timeout=timeout)


class Chat:
    """Requests of one `Endpoint.map`."""

    def __init__(self, client: openai.AsyncOpenAI, endpoint: Endpoint) -> None:
        self._client = client
        self._endpoint = endpoint

    async def __call__(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        enough: Callable[[Answer], bool] = lambda answer: bool(answer.text) or not answer.thought,
        **options: Any,
    ) -> Answer:
        """The answer to a chat, at temperature 0 where the endpoint takes it.

        max_tokens: more are allowed where an answer is cut off and not `enough`, which the endpoint remembers.
        Raises: FilteredByEndpoint, RefusedByEndpoint, EndpointError.
        """
        endpoint = self._endpoint
        answer: Answer | None = None
        for room in range(endpoint.room, len(ROOMS)):
            body = {"max_tokens": max_tokens + ROOMS[room], "temperature": 0, **options}
            try:
                answer = await self._request(messages, body)
            except RefusedByEndpoint:
                # Its context may be too short for more.
                if answer is None:
                    raise
                return answer
            if not answer.cut or enough(answer):
                if room > endpoint.room:
                    logger.warning(
                        "answers of %s were cut off: %d more tokens are allowed", endpoint.model, ROOMS[room]
                    )
                    endpoint.room = room
                return answer
        assert answer is not None
        return answer

    async def _request(self, messages: Messages, options: dict[str, Any]) -> Answer:
        model = self._endpoint.model

        async def send(body: Body) -> Any:
            return await create_chat(self._client, body)

        with translated(model):
            return answer_of(await self._endpoint.dialect.ask({"model": model, "messages": messages, **options}, send))


async def create_chat(client: openai.AsyncOpenAI, body: Body) -> Any:
    """POST /chat/completions of a body as it is, with fields that the client does not know among them."""
    others = {name: value for name, value in body.items() if name not in ("model", "messages")}
    return await client.chat.completions.create(
        model=body["model"],
        messages=body["messages"],
        extra_body=others,
    )


@contextmanager
def translated(model: str) -> Iterator[None]:
    """Says what to do about the errors of a request to an endpoint.

    Raises: FilteredByEndpoint, RefusedByEndpoint, EndpointError.
    """
    try:
        yield
    except EmovllmError:
        raise
    except (openai.BadRequestError, openai.UnprocessableEntityError, openai.PermissionDeniedError) as error:
        if is_filter(error):
            raise FilteredByEndpoint(f"the endpoint's content filter refuses the text: {error.message}") from None
        if isinstance(error, openai.PermissionDeniedError):
            raise _refused_key() from None
        raise RefusedByEndpoint(f"the endpoint refuses the request: {error.message}") from None
    except openai.AuthenticationError:
        raise _refused_key() from None
    except openai.NotFoundError:
        raise EndpointError(f"the endpoint has no model {model!r}, or its URL is wrong (most end in /v1)") from None
    except openai.APITimeoutError:
        raise EndpointError("the endpoint did not answer in time, after several tries") from None
    except openai.APIConnectionError:
        raise EndpointError("cannot reach the endpoint: is its URL right, and is it running?") from None
    except openai.APIStatusError as error:
        raise EndpointError(f"the endpoint failed with status {error.status_code}, after several tries") from None
    except (openai.OpenAIError, LookupError, TypeError, AttributeError, ValueError):
        raise EndpointError("the endpoint's answer is not that of an OpenAI-compatible server") from None


def _refused_key() -> EndpointError:
    # Not the server's words: they may repeat the key.
    return EndpointError("the endpoint refuses the API key: set the variable OPENAI_API_KEY")
