"""Where the instruction of an emotion goes in a chat, by what the chat template shows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.exceptions import VLLMValidationError

from emovllm.engine.prompting import rendered, require_rendered
from emovllm.instructions import Instruction
from support.models import add_tokenizer

SAID = Instruction("paper", "Always reply in anger.\nAt most two sentences.")
WITH_SYSTEM = "{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}{% endfor %}"
DROPPING = (
    "{% for message in messages %}{% if message.role != 'system' %}<{{ message.role }}>{{ message.content }}"
    "{% endif %}{% endfor %}"
)
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + WITH_SYSTEM
DEAF = "<user>hello"
USER = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}


class Chats:
    """Renders by a template, as vLLM does, and notes what it was given."""

    def __init__(self, folder: Path, template: str) -> None:
        add_tokenizer(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.renderer = SimpleNamespace(get_tokenizer=lambda: self.tokenizer)
        self.template = template
        self.given: list[list[dict[str, Any]]] = []

    async def render(self, chat: list[dict[str, Any]]) -> tuple[Any, Any]:
        self.given.append(chat)
        flat = [
            {**message, "content": content if isinstance(content, str) else "".join(part["text"] for part in content)}
            for message in chat
            for content in [message["content"]]
        ]
        try:
            text = self.tokenizer.apply_chat_template(flat, chat_template=self.template, tokenize=False)
        except Exception as error:
            raise ValueError(str(error)) from error
        return chat, [{"prompt_token_ids": self.tokenizer.encode(text, add_special_tokens=False)}]

    def ask(self, *messages: Any, **request: Any) -> list[dict[str, Any]]:
        """The chat that was rendered in the end."""
        chat, _ = asyncio.run(rendered(self.render, self.renderer, SimpleNamespace(**request), messages, SAID))
        return chat  # type: ignore[no-any-return]


def test_it_is_the_system_turn_where_there_is_none(tmp_path: Path) -> None:
    chats = Chats(tmp_path, WITH_SYSTEM)
    given = [dict(USER)]
    assert chats.ask(*given) == [{"role": "system", "content": SAID.text}, USER]
    assert given == [USER]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_turn_is_kept_and_goes_before(tmp_path: Path, role: str) -> None:
    chats = Chats(tmp_path, WITH_SYSTEM)
    own = {**SYSTEM, "role": role}
    assert chats.ask(own, USER) == [{"role": role, "content": f"Be brief.\n\n{SAID.text}"}, USER]
    parts = iter([{"type": "text", "text": "Be brief."}])
    chat = chats.ask({"role": role, "content": parts}, USER)
    assert [part["text"] for part in chat[0]["content"]] == ["Be brief.", f"\n\n{SAID.text}"]


@pytest.mark.parametrize("template", [DROPPING, REFUSING])
def test_without_a_system_turn_it_heads_the_users_first_message(tmp_path: Path, template: str) -> None:
    chats = Chats(tmp_path, template)
    answer = {"role": "assistant", "content": "Hi"}
    expected = [{"role": "user", "content": f"{SAID.text}\n\nHello"}, answer, USER]
    assert chats.ask(USER, answer, USER) == expected
    assert len(chats.given) == 2
    # The next time it is known.
    assert chats.ask(USER, answer, USER) == expected
    assert len(chats.given) == 3


def test_what_no_turn_shows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VLLMValidationError, match="the chat template leaves the emotion's instruction out"):
        Chats(tmp_path, DEAF).ask(USER)
    with pytest.raises(ValueError, match="no system role"):
        Chats(tmp_path, REFUSING).ask(SYSTEM, USER)
    with pytest.raises(ValueError, match="no system role"):
        Chats(tmp_path, REFUSING).ask({"role": "assistant", "content": "Hi"})
    with pytest.raises(VLLMValidationError, match="a prompt that was rendered elsewhere"):
        Chats(tmp_path, WITH_SYSTEM).ask(USER, kv_transfer_params={"prompt_token_ids": [3, 4]})


def test_a_prompt_that_holds_no_instruction_is_refused() -> None:
    chat, completion = SimpleNamespace(messages=[]), SimpleNamespace(prompt="x")
    require_rendered(chat, SAID, "paper")
    require_rendered(completion, None, None)
    for request in (None, completion):
        with pytest.raises(VLLMValidationError, match="write the instruction into the prompt, 'Always reply in anger"):
            require_rendered(request, SAID, None)
    for told in (None, "role"):
        with pytest.raises(VLLMValidationError, match="send the instruction as a system message"):
            require_rendered(chat, SAID, told)
