from __future__ import annotations

from typing import Any

import pytest

from emovllm_offline.data.prompts import render
from emovllm_offline.data.styles import Frame
from emovllm_offline.reading.prompts import read_of


@pytest.fixture
def with_ends(tokenizer: Any) -> Any:
    """Puts a token before each text, and one behind it."""
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    other = deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return other


def test_a_text_is_read_as_it_is_at_its_own_last_token(with_ends: Any) -> None:
    read = read_of(with_ends, "my dog runs", "last", chat=False)
    assert [with_ends.decode([read.ids[place]]) for place in read.positions] == ["runs"]
    assert read.ids[0] == 1


def test_a_mean_is_over_the_texts_own_tokens(with_ends: Any) -> None:
    read = read_of(with_ends, "my dog runs", "mean", chat=False)
    assert [with_ends.decode([read.ids[place]]) for place in read.positions] == ["my", "dog", "runs"]


def test_a_chat_is_read_where_the_reply_begins(tokenizer: Any) -> None:
    read = read_of(tokenizer, "my dog runs", "last", chat=True)
    assert read.ids == render(tokenizer, Frame(), "my dog runs").ids
    assert [tokenizer.decode([read.ids[place]]) for place in read.positions] == ["<assistant>"]


def test_a_base_model_is_asked_in_plain_text(tokenizer: Any) -> None:
    from copy import deepcopy

    base = deepcopy(tokenizer)
    base.chat_template = None
    assert read_of(base, "my dog runs", "last", chat=True).positions
    assert read_of(base, "my dog runs", "last", chat=False) == read_of(tokenizer, "my dog runs", "last", chat=False)


def test_an_empty_text_has_no_position(tokenizer: Any) -> None:
    assert read_of(tokenizer, "", "last", chat=False).positions == ()
