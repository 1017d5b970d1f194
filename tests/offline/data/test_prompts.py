"""Prompts are what the model is asked with, under any chat template, and without one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from emovllm.errors import PromptError
from emovllm_offline.data.prompts import has_template, messages, plain_text, render, require_different
from emovllm_offline.data.styles import Frame, Span, Turn

DROPPING = (
    "<s>{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}> {{ m['content'] | trim }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def templated(tokenizer):
    """Makes the tokenizer with another chat template, which knows the words of a thinking block."""

    def with_template(template: str | None):
        made = copy.deepcopy(tokenizer)
        made.add_tokens(["<think>", "</think>"])
        made.chat_template = template
        return made

    return with_template


def test_prompt_has_one_bos_and_ends_with_the_generation_prompt(tokenizer):
    frame = Frame(system="reply .", turns=(Turn(user="cat", assistant="yes"),))
    prompt = render(tokenizer, frame, "dog")
    assert " ".join(tokenizer.convert_ids_to_tokens(list(prompt.ids))) == (
        "<s> <system> reply . </s> <user> cat </s> <assistant> yes </s> <user> dog </s> <assistant>"
    )
    assert list(prompt.positions) == [len(prompt.ids) - 1]


def test_reply_tokens_follow_the_prompt(tokenizer):
    plain = render(tokenizer, Frame(system="reply ."), "dog")
    forced = render(tokenizer, Frame(system="reply .", reply="it is very dull ."), "dog", Span(first=1, last=4))
    assert tokenizer.convert_ids_to_tokens(list(forced.ids[len(plain.ids) :])) == ["it", "is", "very", "dull"]
    assert [forced.ids[i] for i in forced.positions] == tokenizer.convert_tokens_to_ids(["is", "very", "dull"])


def test_reply_shorter_than_its_span_is_refused(tokenizer):
    with pytest.raises(PromptError, match="a reply of 1 tokens has none from 2 on"):
        render(tokenizer, Frame(reply="no"), "dog", Span(first=2, last=4))


def test_template_without_system_role_gets_it_in_the_user_message(tokenizer, monkeypatch):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + (
        tokenizer.chat_template
    )
    monkeypatch.setattr(tokenizer, "chat_template", refusing)
    prompt = render(tokenizer, Frame(system="reply ."), "dog")
    assert tokenizer.decode(list(prompt.ids)) == "<s> <user> reply . dog </s> <assistant>"


def test_instruction_that_a_template_drops_heads_the_first_user_message(templated):
    frame = Frame(system="reply  in\ncalm .", turns=(Turn(user="cat", assistant="yes"),))
    prompt = render(templated(DROPPING), frame, "dog")
    assert templated(DROPPING).decode(list(prompt.ids)) == (
        "<s> <user> reply in calm . cat </s> <assistant> yes </s> <user> dog </s> <assistant>"
    )


def test_instruction_that_a_template_trims_stays_where_it_is(templated):
    trimming = DROPPING.replace(" if m['role'] != 'system'", "")
    prompt = render(templated(trimming), Frame(system=" reply . "), "dog")
    assert templated(trimming).decode(list(prompt.ids)) == "<s> <system> reply . </s> <user> dog </s> <assistant>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("<s><assistant>", "leaves the style's instruction out: 'reply .'"),
        ("{{ raise_exception('no dogs') }}", "chat template refuses the chat: no dogs"),
        ({"rag": "<s>", "tool_use": "<s>"}, "chat template cannot be used: "),
    ],
)
def test_template_that_shows_no_instruction_or_no_chat_is_refused(templated, template, message):
    with pytest.raises(PromptError, match=message):
        render(templated(template), Frame(system="reply ."), "dog")


@pytest.mark.parametrize(
    "block",
    [
        "{% if enable_thinking is defined and not enable_thinking %} <think> </think> {% endif %}",
        " <think>\n",  # opened whatever it is told
    ],
)
def test_empty_thinking_block_belongs_to_the_prompt(templated, block):
    thinking = templated(DROPPING.replace("<assistant>{% endif %}", f"<assistant>{block}{{% endif %}}"))
    frame = Frame(system="reply .", reply="yes very proud")
    assert thinking.decode(list(render(thinking, frame, "dog").ids)) == (
        "<s> <user> reply . dog </s> <assistant> <think> </think> yes very proud"
    )
    forced = render(thinking, frame, "dog", Span(last=2))
    assert thinking.decode([forced.ids[i] for i in forced.positions]) == "yes very"
    prompt = render(thinking, Frame(), "dog")
    assert thinking.decode([prompt.ids[i] for i in prompt.positions]) == "</think>"


def test_reply_of_gpt_oss_is_in_its_final_channel(templated):
    harmony = templated(DROPPING.replace("<assistant>", "<|start|>assistant"))
    harmony.add_tokens(["<|start|>assistant", "<|channel|>final<|message|>"])
    prompt = render(harmony, Frame(reply="yes"), "dog")
    assert harmony.decode(list(prompt.ids)) == "<s> <user> dog </s> <|start|>assistant <|channel|>final<|message|> yes"


def test_chat_without_a_template_is_plain_text():
    frame = Frame(system="reply .", turns=(Turn(user="cat", assistant="yes"),))
    assert plain_text(messages(frame, "dog")) == (
        "reply .\n\nUser:\ncat\n\nAssistant:\nyes\n\nUser:\ndog\n\nAssistant:\n"
    )


def test_template_of_the_guide_gives_the_plain_text(templated):
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "discovery.md").read_text()
    template = guide.split("```jinja\n")[1].split("\n```")[0]
    chat = messages(Frame(system="reply .", turns=(Turn(user="cat", assistant="yes"),)), "dog")
    text = templated(template).apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == plain_text(chat)


def test_tokenizer_without_a_template_is_given_plain_text_as_completions_give_it(templated):
    tokenizer = templated(None)
    tokenizer.add_tokens(["User:", "Assistant:"])
    assert not has_template(tokenizer)
    prompt = render(tokenizer, Frame(system="reply .", reply="yes very"), "dog", Span(first=1))
    text = plain_text(messages(Frame(system="reply ."), "dog"))
    assert list(prompt.ids[:-2]) == tokenizer(text)["input_ids"]
    assert tokenizer.decode(list(prompt.ids)) == "reply . User: dog Assistant: yes very"
    assert tokenizer.decode([prompt.ids[i] for i in prompt.positions]) == "very"


def test_tokenizer_of_mistral_common_is_refused_with_what_to_do():
    class MistralCommonBackend:
        chat_template = None

    with pytest.raises(PromptError, match="mistral_format=False"):
        render(MistralCommonBackend(), Frame(), "dog")


def test_prompts_that_are_the_same_in_all_emotions_are_refused():
    require_different([(1, 2), (1, 2), (1, 3)], "told")
    with pytest.raises(PromptError, match="the prompts of all emotions are the same in the style told"):
        require_different([(1, 2)] * 3, "told")
