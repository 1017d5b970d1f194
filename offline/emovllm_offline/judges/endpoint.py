"""Chat requests to any OpenAI-compatible endpoint: a bounded number at a time, retried when the server is busy."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import openai

from emovllm.errors import EndpointError, RefusedByEndpoint

In = TypeVar("In")
Out = TypeVar("Out")
Messages = list[dict[str, str]]


class Endpoint:
    """One model behind an OpenAI-compatible endpoint.

    The key is read from OPENAI_API_KEY when a request is made; it is kept and written nowhere. The client repeats
    requests that meet 408, 409, 429, 5xx, a timeout or no connection, waiting longer each time or as long as the
    server says.
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
        self._options: dict[str, Any] = {"base_url": base_url, "max_retries": retries, "timeout": timeout}

    def map(self, function: Callable[[Chat, In], Awaitable[Out]], inputs: Sequence[In]) -> list[Out]:
        """`function(chat, input)` of every input, at most `concurrency` at a time; results in the inputs' order.

        The first error ends the other requests and is raised.
        """

        async def all_of_them() -> list[Out]:
            limit = asyncio.Semaphore(self.concurrency)
            # Servers that want no key want the header all the same.
            key = os.environ.get("OPENAI_API_KEY") or "none"
            async with openai.AsyncOpenAI(api_key=key, **self._options) as client:

                async def one(value: In) -> Out:
                    async with limit:
                        return await function(Chat(client, self.model), value)

                try:
                    async with asyncio.TaskGroup() as group:
                        tasks = [group.create_task(one(value)) for value in inputs]
                except ExceptionGroup as errors:
                    raise errors.exceptions[0] from None
                return [task.result() for task in tasks]

        return asyncio.run(all_of_them())


class Chat:
    """Requests of one `Endpoint.map`."""

    def __init__(self, client: openai.AsyncOpenAI, model: str) -> None:
        self._client = client
        self._model = model

    async def __call__(self, messages: Messages, **options: Any) -> tuple[str, str]:
        """The reply to a chat at temperature 0, and why it ended.

        Raises: RefusedByEndpoint, EndpointError.
        """
        with translated(self._model):
            answer = await self._client.chat.completions.create(
                model=self._model,
                messages=messages,  # type: ignore[arg-type]
                temperature=0,
                **options,
            )
            choice = answer.choices[0]
            text, reason = choice.message.content, choice.finish_reason
        return text or "", reason or ""


@contextmanager
def translated(model: str) -> Iterator[None]:
    """Says what to do about the errors of a request to an endpoint.

    Raises: RefusedByEndpoint, EndpointError.
    """
    try:
        yield
    except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
        raise RefusedByEndpoint(f"the endpoint refuses the request: {error.message}") from None
    except (openai.AuthenticationError, openai.PermissionDeniedError):
        # Not the server's words: they may repeat the key.
        raise EndpointError("the endpoint refuses the API key: set the variable OPENAI_API_KEY") from None
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
