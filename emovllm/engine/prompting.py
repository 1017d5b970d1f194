"""`emotion_prompt`: an emotion's instruction goes into a chat on its way to vLLM's rendering.

It stands in the system turn, or where the chat template has none, at the head of the user's first message. That it is
in the prompt is read from the prompt's tokens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from emovllm.instructions import Instruction

Chat = list[dict[str, Any]]
_SYSTEM = ("system", "developer")
# Where a renderer remembers the chat templates that show no system turn.
_NO_SYSTEM = "_emotion_no_system"


async def rendered(
    render: Callable[[Chat], Awaitable[tuple[Any, Any]]],
    renderer: Any,
    request: Any,
    messages: Sequence[Any],
    instruction: Instruction,
) -> tuple[Any, Any]:
    """What vLLM makes of a request's chat, with an instruction in it.

    Args:
        render: vLLM's way from messages to a conversation and its prompts.
        renderer: what it renders with.
    Raises: VLLMValidationError where the instruction is not to be seen in the prompt.
    """
    if "prompt_token_ids" in (getattr(request, "kv_transfer_params", None) or {}):
        raise refused(
            "emotion_prompt cannot be combined with a prompt that was rendered elsewhere (kv_transfer_params)"
        )
    chat = [_copied(message) for message in messages]
    without: set[Any] = renderer.__dict__.setdefault(_NO_SYSTEM, set())
    template = getattr(request, "chat_template", None)
    failure: Exception | None = None
    for place in (_in_system, _before_user):
        placed = place(chat, instruction.text)
        if placed is None or (place is _in_system and template in without):
            continue
        try:
            conversation, prompts = await render(placed)
        except Exception as error:
            # Some templates refuse a system turn (Gemma 2), others leave it out; what else is wrong fails again.
            failure = error
            continue
        failure = None
        if all(_shows(renderer.get_tokenizer(), prompt, instruction.text) for prompt in prompts):
            if place is _before_user:
                without.add(template)
            return conversation, prompts
    raise failure or refused(
        "the chat template leaves the emotion's instruction out, in the system turn and in the user's; leave "
        "emotion_prompt out, or give another chat template"
    )


def require_rendered(request: Any, instruction: Instruction | None, told: str | None) -> None:
    """Raises: VLLMValidationError where a request asks for an instruction, and its prompt holds another or none.

    told: the style of what its prompt holds.
    """
    if instruction is None or instruction.style == told:
        return
    if request is None or hasattr(request, "prompt"):
        raise refused(
            "emotion_prompt is of chats (/v1/chat/completions, its batches, /v1/responses), and this prompt is "
            f"complete: leave emotion_prompt out and write the instruction into the prompt, {instruction.text!r}"
        )
    raise refused(
        "emotion_prompt cannot be applied: vLLM renders this model's chats in its own way, not by a chat template; "
        f"leave it out and send the instruction as a system message, {instruction.text!r}"
    )


def _copied(message: Any) -> dict[str, Any]:
    """A message whose content may be read twice; vLLM's parts of one may be an iterator."""
    copied = dict(message)
    content = copied.get("content")
    if content is not None and not isinstance(content, str):
        copied["content"] = list(content)
    return copied


def _in_system(chat: Chat, text: str) -> Chat:
    if not chat or chat[0].get("role") not in _SYSTEM:
        return [{"role": "system", "content": text}, *chat]
    content = chat[0].get("content") or ""
    if isinstance(content, str):
        joined: Any = f"{content}\n\n{text}" if content else text
    else:
        joined = [*content, {"type": "text", "text": f"\n\n{text}"}]
    return [{**chat[0], "content": joined}, *chat[1:]]


def _before_user(chat: Chat, text: str) -> Chat | None:
    """None where no user says anything."""
    first = next((number for number, message in enumerate(chat) if message.get("role") == "user"), None)
    if first is None:
        return None
    content = chat[first].get("content") or ""
    joined: Any = (
        f"{text}\n\n{content}" if isinstance(content, str) else [{"type": "text", "text": f"{text}\n\n"}, *content]
    )
    return [*chat[:first], {**chat[first], "content": joined}, *chat[first + 1 :]]


def _shows(tokenizer: Any, prompt: Any, text: str) -> bool:
    """Whether a prompt's tokens hold a text, but for white space, which templates trim."""
    ids = prompt.get("prompt_token_ids")
    if not ids:
        return False
    # As the tokenizer gives it back, of which some know no capitals.
    known = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
    return "".join(known.split()) in "".join(tokenizer.decode(list(ids)).split())


def refused(message: str) -> Exception:
    """The error that the server answers with a 400."""
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(message, parameter="emotion_prompt")
