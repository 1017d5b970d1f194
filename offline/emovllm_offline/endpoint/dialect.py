"""How an endpoint departs from the requests that we would send it, learnt from what it refuses.

Newer OpenAI models take `max_completion_tokens` in place of `max_tokens` and no temperature but their own; other
servers know no JSON schema, no JSON object, or no system role.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import openai

from emovllm.fields import FIELDS

Body = dict[str, Any]
Out = TypeVar("Out")
Refusal = openai.BadRequestError | openai.UnprocessableEntityError
# Without these a request asks for something else.
NEEDED = frozenset({"model", "messages", "prompt", "max_completion_tokens", "return_token_ids", "prompt_logprobs"}) | {
    *FIELDS
}
# Words of many a message that is about something else.
_PLAIN_WORDS = frozenset({"model", "messages", "prompt"})

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """One departure. note: what is done about it, for the log and for results."""

    note: str
    apply: Callable[[Body], Body] = field(compare=False)


class Dialect:
    """What is known of one endpoint. A change counts once a request has succeeded with it, and then for all."""

    def __init__(self) -> None:
        self._changes: tuple[Change, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(change.note for change in self._changes)

    async def ask(self, body: Body, send: Callable[[Body], Awaitable[Out]]) -> Out:
        """Sends a request, and sends it again with one change more as long as it is refused and there is one to try.

        Raises: whatever `send` does, a refusal where no change is left.
        """
        changes = self._changes
        while True:
            sent = body
            for change in changes:
                sent = change.apply(sent)
            try:
                answer = await send(sent)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                change_to_try = None if is_filter(error) else next_change(error, sent)
                if change_to_try is None:
                    raise
                changes = (*changes, change_to_try)
            else:
                self._keep(changes)
                return answer

    def _keep(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            if change not in self._changes:
                logger.warning("%s", change.note)
                self._changes = (*self._changes, change)


def next_change(refusal: Refusal, body: Body) -> Change | None:
    """What to try after a refusal: what it names; where it names nothing, the features that servers lack most."""
    parameter = refused_parameter(refusal, body)
    has_system = any(message.get("role") == "system" for message in body.get("messages", ()))
    if parameter == "max_tokens":
        return Change("the endpoint refuses max_tokens: max_completion_tokens is sent instead", _rename_max_tokens)
    if parameter == "response_format" or (
        parameter is None and "response_format" in body and not (has_system and "system" in refusal.message.lower())
    ):
        return _simpler_format(body)
    if parameter in (None, "messages"):
        note = "the endpoint takes no system message: its text heads the first message of the user"
        return Change(note, merge_system) if has_system else None
    if parameter in NEEDED:
        return None
    return _without(parameter, f"the endpoint refuses {parameter} {body[parameter]!r}: its own default is used")


def refused_parameter(refusal: Refusal, body: Body) -> str | None:
    """The field of a request that a refusal names; None where it names none."""
    named = re.split(r"[.\[]", refusal.param)[0] if isinstance(refusal.param, str) else None
    if named in body:
        return named
    words = {*re.findall(r"\w+", refusal.message)} - _PLAIN_WORDS
    return next((name for name in body if name in words), None)


# What content filters and moderators of endpoints are called in their refusals.
_FILTERS = frozenset(
    {
        "content_filter",
        "content_policy_violation",
        "data_inspection_failed",
        "invalid_prompt",
        "moderation_blocked",
        "ResponsibleAIPolicyViolation",
    }
)


def is_filter(error: openai.APIStatusError) -> bool:
    """Whether it is the text that a request is refused for."""
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("innererror") or body.get("inner_error")
    codes = {str(body.get("code")), str(body.get("type"))}
    if isinstance(inner, dict):
        codes.add(str(inner.get("code")))
    flagged = isinstance(error, openai.PermissionDeniedError) and re.search("flagged|moderation", error.message)
    return bool(codes & _FILTERS or flagged)


def _rename_max_tokens(body: Body) -> Body:
    return {("max_completion_tokens" if name == "max_tokens" else name): value for name, value in body.items()}


def _simpler_format(body: Body) -> Change:
    if body["response_format"].get("type") == "json_schema":
        note = "the endpoint takes no JSON schema: it is asked for any JSON object"
        return Change(note, lambda body: _with_json_object(body) if "response_format" in body else body)
    return _without("response_format", "the endpoint takes no response_format: JSON is asked for in words alone")


def _with_json_object(body: Body) -> Body:
    return {**body, "response_format": {"type": "json_object"}}


def _without(parameter: str, note: str) -> Change:
    return Change(note, lambda body: {name: value for name, value in body.items() if name != parameter})


def merge_system(body: Body) -> Body:
    """The request with its system message as the head of the first user message."""
    messages = body.get("messages", [])
    if not messages or messages[0]["role"] != "system":
        return body
    system, first, *others = messages
    merged = {**first, "content": f"{system['content']}\n\n{first['content']}"}
    return {**body, "messages": [merged, *others]}
