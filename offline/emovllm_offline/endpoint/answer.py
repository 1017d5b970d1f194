"""A chat's answer as a judge or a user reads it: what is said after any thinking."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from emovllm.errors import FilteredByEndpoint

# Tokens beyond what was asked for, tried one after the other where an answer is cut off before it says anything:
# models that think may need them.
ROOMS = (0, 2000, 8000)
# The finish reason of an answer that an endpoint's content filter keeps back.
FILTERED = "content_filter"
# Thinking that no parser of the server has taken out of the text. A template may have opened it in the prompt.
_NAMES = "think|thinking|thought|reasoning"
_END = re.compile(rf"</(?:{_NAMES})>|\[/THINK\]|<\|channel\|>final<\|message\|>", re.IGNORECASE)
_START = re.compile(rf"\s*(?:<(?:{_NAMES})>|\[THINK\]|<\|channel\|>analysis)", re.IGNORECASE)


class Answer(NamedTuple):
    """text: without the thinking; empty where that took all tokens. thought: whether there was any.

    prompt_tokens: of the chat as the model was given it; None where the endpoint does not say.
    """

    text: str
    finish_reason: str
    thought: bool = False
    prompt_tokens: int | None = None

    @property
    def cut(self) -> bool:
        return self.finish_reason == "length"


def answer_of(completion: Any) -> Answer:
    """The first choice of a chat completion.

    Raises: FilteredByEndpoint; AttributeError, TypeError or LookupError for what is no completion.
    """
    choice = completion.choices[0]
    message, reason = choice.message, choice.finish_reason or ""
    if reason == "content_filter":
        raise FilteredByEndpoint("the endpoint's content filter cut the answer off")
    if message.refusal:
        raise FilteredByEndpoint(f"the endpoint's model refuses: {str(message.refusal)[:200]}")
    text, thought_in_text = without_thinking(_text(message.content))
    extra = message.model_extra or {}
    thought = (
        thought_in_text
        or bool(extra.get("reasoning_content") or extra.get("reasoning"))
        or bool(getattr(getattr(completion.usage, "completion_tokens_details", None), "reasoning_tokens", 0))
        # What a parser of reasoning leaves of an answer that never began.
        or (message.content is None and reason == "length")
    )
    return Answer(text, reason, thought, getattr(completion.usage, "prompt_tokens", None))


def without_thinking(text: str) -> tuple[str, bool]:
    """What follows the thinking in a text, and whether it has any; nothing where the thinking has no end."""
    ends = list(_END.finditer(text))
    if ends:
        return text[ends[-1].end() :].lstrip(), True
    return ("", True) if _START.match(text) else (text, False)


def json_objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text, which may have words around them, without those inside another."""
    objects = []
    start = text.find("{")
    while start >= 0:
        end = start + 1
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
            objects.append(value)
        except (ValueError, RecursionError):
            pass
        start = text.find("{", end)
    return objects


def _text(content: Any) -> str:
    # Some servers send parts, those of the thinking among them.
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict) and part["type"] == "text")
    return content or ""
