"""From a frame and a user message to token ids."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from emovllm.errors import PromptError
from emovllm_offline.data.styles import Frame, Span

# Some templates insert today's date, some a reasoning block; both would make prompts differ from run to run.
TEMPLATE_OPTIONS = {"date_string": "01 Jan 2025", "enable_thinking": False}
# With what a model without a chat template would go on after its reply.
PLAIN_STOP = "\n\nUser:"
# gpt-oss names the channel of what it says, be it thinking, before it says it.
_HARMONY, _FINAL_CHANNEL = "<|start|>assistant", "<|channel|>final<|message|>"
# Some templates open the thinking whatever they are told.
_OPEN_THINKING = re.compile(r"<(think|thinking|thought|reasoning)>\s*$")

Chat = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids and the positions whose activations count (their mean). reply: how many ids at the end are of one."""

    ids: tuple[int, ...]
    positions: range
    reply: int = 0

    @property
    def last(self) -> int:
        """The position of the last token before any reply, from which the model would begin its own."""
        return len(self.ids) - self.reply - 1


def render(tokenizer: Any, frame: Frame, user: str, span: Span | None = None) -> Prompt:
    """The chat prompt of one frame, the generation prompt included; then the frame's reply, if it has one.

    Raises: PromptError where the tokenizer or its chat template cannot render the chat, or the reply has no token in
        `span`.
    """
    ids = _ids(tokenizer, frame, user)
    if frame.reply is None:
        return Prompt(tuple(ids), range(len(ids) - 1, len(ids)))
    reply = tokenizer(frame.reply, add_special_tokens=False)["input_ids"]
    span = span or Span()
    last = min(span.last, len(reply))
    if span.first >= last:
        raise PromptError(f"a reply of {len(reply)} tokens has none from {span.first} on: {frame.reply!r}")
    return Prompt((*ids, *reply[:last]), range(len(ids) + span.first, len(ids) + last), last)


def has_template(tokenizer: Any) -> bool:
    """Whether chats are rendered by the tokenizer's own template, or in plain text.

    Raises: PromptError where the tokenizer has neither a template nor tokens of its own for plain text.
    """
    if type(tokenizer).__name__ == "MistralCommonBackend":
        raise PromptError(
            "a tokenizer of mistral-common has no chat template: load it with mistral_format=False, or take a model "
            "folder with tokenizer.json and chat_template.jinja"
        )
    return bool(getattr(tokenizer, "chat_template", None))


def require_different(prompts: Sequence[Hashable], style: str) -> None:
    """prompts: of one message, one for each emotion. Raises: PromptError where they are all the same."""
    if len(set(prompts)) == 1:
        raise PromptError(
            f"the prompts of all emotions are the same in the style {style}: nothing would bring the model to reply in "
            "any; its frames, or what the tokenizer's chat template shows of them, must differ"
        )


def _ids(tokenizer: Any, frame: Frame, user: str) -> list[int]:
    if not has_template(tokenizer):
        # With what the tokenizer puts before any text, as completions are asked.
        return list(tokenizer(plain_text(messages(frame, user)))["input_ids"])
    text = _chat(tokenizer, frame, user)
    # What comes before the reply belongs to the prompt.
    if opened := _OPEN_THINKING.search(text):
        text = f"{text.rstrip()}\n\n</{opened[1]}>\n\n"
    elif text.endswith(_HARMONY):
        text += _FINAL_CHANNEL
    # The template has the special tokens: a second BOS would be added.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _chat(tokenizer: Any, frame: Frame, user: str) -> str:
    try:
        text = _apply(tokenizer, messages(frame, user))
    except TemplateError as error:
        if frame.system is None:
            raise PromptError(f"the tokenizer's chat template refuses the chat: {error}") from None
        text = None
    if text is not None and _shows(text, frame.system):
        return text
    # Templates without a system role refuse it (Gemma 2) or leave it out.
    try:
        text = _apply(tokenizer, messages(frame, user, merge_system=True))
    except TemplateError as error:
        raise PromptError(f"the tokenizer's chat template refuses the chat: {error}") from None
    if not _shows(text, frame.system):
        raise PromptError(f"the tokenizer's chat template leaves the style's instruction out: {frame.system!r}")
    return text


def _shows(text: str, instruction: str | None) -> bool:
    # Templates trim what they are given.
    return instruction is None or " ".join(instruction.split()) in " ".join(text.split())


def messages(frame: Frame, user: str, merge_system: bool = False) -> Chat:
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


def plain_text(chat: Chat) -> str:
    """A chat for a model without a chat template, up to its reply, which begins on a line of its own."""
    said = [
        message["content"] if message["role"] == "system" else f"{message['role'].capitalize()}:\n{message['content']}"
        for message in chat
    ]
    return "\n\n".join([*said, "Assistant:\n"])


def _apply(tokenizer: Any, chat: Chat) -> str:
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **TEMPLATE_OPTIONS))
    except ValueError as error:
        # Of several templates, none is the default.
        raise PromptError(f"the tokenizer's chat template cannot be used: {error}") from None
