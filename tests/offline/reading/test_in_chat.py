from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from emovllm_offline.data.prompts import render
from emovllm_offline.data.styles import Frame
from emovllm_offline.reading.in_chat import Chats


def words(tokenizer: Any, ids: tuple[int, ...], positions: tuple[int, ...]) -> list[str]:
    return [tokenizer.decode([ids[place]]) for place in positions]


@pytest.mark.parametrize("system", [None, "always reply in calm ."])
@pytest.mark.parametrize("text", ["my dog runs", "a dog", "always reply in calm ."])
def test_a_message_is_read_at_its_own_tokens(tokenizer: Any, system: str | None, text: str) -> None:
    chats = Chats(tokenizer, system)
    mean = chats.read(text, "text", "mean")
    assert mean.ids == render(tokenizer, Frame(system=system), text).ids
    assert words(tokenizer, mean.ids, mean.positions) == text.split()
    last = chats.read(text, "text", "last")
    assert words(tokenizer, last.ids, last.positions) == text.split()[-1:]


def test_a_reply_begins_at_the_prompts_last_token(tokenizer: Any) -> None:
    read = Chats(tokenizer, "be calm").read("my dog runs", "reply", "last")
    assert words(tokenizer, read.ids, read.positions) == ["<assistant>"]


def test_a_base_models_message_is_read_at_its_own_tokens_too(tokenizer: Any) -> None:
    base = deepcopy(tokenizer)
    base.chat_template = None
    read = Chats(base, "be calm").read("my dog runs", "text", "mean")
    assert words(base, read.ids, read.positions) == ["my", "dog", "runs"]


def test_an_empty_message_has_no_position(tokenizer: Any) -> None:
    assert Chats(tokenizer, None).read("", "text", "last").positions == ()
