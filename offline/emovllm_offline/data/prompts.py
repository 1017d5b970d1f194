"""From a frame and a user message to token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from emovllm.errors import PromptError
from emovllm_offline.data.styles import Frame, Span

# Some templates insert today's date, some a reasoning block; both would make prompts differ from run to run.
TEMPLATE_OPTIONS = {"date_string": "01 Jan 2025", "enable_thinking": False}


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids and the positions whose activations count (their mean)."""

    ids: tuple[int, ...]
    positions: range


def render(tokenizer: Any, frame: Frame, user: str, span: Span | None = None) -> Prompt:
    """The chat prompt of one frame, the generation prompt included; then the frame's reply, if it has one.

    Raises: PromptError where the tokenizer has no chat template or the reply has no token in `span`.
    """
    ids = _chat(tokenizer, frame, user)
    if frame.reply is None:
        return Prompt(tuple(ids), range(len(ids) - 1, len(ids)))
    # Token ids, not text: tokenising a rendered template a second time would add a second BOS.
    reply = tokenizer(frame.reply, add_special_tokens=False)["input_ids"]
    span = span or Span()
    last = min(span.last, len(reply))
    if span.first >= last:
        raise PromptError(f"a reply of {len(reply)} tokens has none from {span.first} on: {frame.reply!r}")
    return Prompt((*ids, *reply[:last]), range(len(ids) + span.first, len(ids) + last))


def _chat(tokenizer: Any, frame: Frame, user: str) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError("the tokenizer has no chat template: discovery needs an instruction-tuned model")
    try:
        return _apply(tokenizer, messages(frame, user))
    except TemplateError:
        if frame.system is None:
            raise
        # Templates without a system role (Gemma 2) get it as the head of the first user message.
        return _apply(tokenizer, messages(frame, user, merge_system=True))


def messages(frame: Frame, user: str, merge_system: bool = False) -> list[dict[str, str]]:
    """The chat of one frame and a user message, without the frame's reply."""
    chat = []
    for turn in frame.turns:
        chat += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.assistant}]
    chat.append({"role": "user", "content": user})
    if frame.system is not None and merge_system:
        chat[0]["content"] = f"{frame.system}\n\n{chat[0]['content']}"
    elif frame.system is not None:
        chat.insert(0, {"role": "system", "content": frame.system})
    return chat


def _apply(tokenizer: Any, chat: list[dict[str, str]]) -> list[int]:
    encoded = tokenizer.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=True, return_dict=True, **TEMPLATE_OPTIONS
    )
    return list(encoded["input_ids"])
