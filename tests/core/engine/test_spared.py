"""What vLLM's requests tell of their replies' form, and their prompts of what is open."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from emovllm.catalogue import Catalogue, Policy, Served
from emovllm.emotion import KEY, Wire
from emovllm.engine import requests, spared
from emovllm.engine.parsers import markers_of
from emovllm.engine.spared import Beginnings, form_of, keeping_template
from emovllm.phases import BITS
from emovllm.sparing import Form
from emovllm.spec import CircuitSpec, EmotionSpec
from support.specs import ANY_MODEL
from support.tokens import tokenizer_with

FUNCTION: dict[str, Any] = {"name": "look", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
THINKING = BITS["thinking"]


def chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "Look."}], **fields)


def form(request: Any) -> Form:
    return form_of(request.to_sampling_params(8, {}), request)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Form()),
        ({"tools": [TOOL]}, Form(tools=True)),
        ({"tools": [TOOL], "tool_choice": "none"}, Form()),
        ({"tools": [TOOL], "tool_choice": "required"}, Form(tools=True, forced=True)),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}},
            Form(tools=True, forced=True),
        ),
        ({"response_format": SCHEMA}, Form(guided=True)),
        ({"response_format": {"type": "json_object"}}, Form(guided=True)),
        ({"structured_outputs": {"regex": "a+"}}, Form(guided=True)),
        ({"structured_outputs": {"choice": ["a", "b"]}, "tools": [TOOL]}, Form(tools=True, guided=True)),
    ],
)
def test_a_chat_tells_its_form(fields: dict[str, Any], expected: Form) -> None:
    assert form(chat(**fields)) == expected


def test_what_guides_calls_alone_leaves_the_answer_free() -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(structural_tag="{}"))
    assert form_of(params, chat(tools=[TOOL])) == Form(tools=True)
    assert form_of(params, chat()) == Form(guided=True)
    assert form_of(params, chat(tools=[TOOL], tool_choice="required")) == Form(tools=True, forced=True, guided=True)


def test_other_routes_tell_it_too() -> None:
    assert form(CompletionRequest(model="m", prompt="Look.")) == Form()
    assert form(CompletionRequest(model="m", prompt="Look.", structured_outputs={"regex": "a"})) == Form(guided=True)
    tools: Any = [{"type": "function", **FUNCTION}]
    assert form(ResponsesRequest(model="m", input="Look.", tools=tools)) == Form(tools=True)
    required = ResponsesRequest(model="m", input="Look.", tools=tools, tool_choice="required")
    assert form(required) == Form(tools=True, forced=True)
    may = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]}
    assert form(ResponsesRequest(model="m", input="Look.", tools=tools, tool_choice=may)) == Form(tools=True)
    assert form_of(SamplingParams(structured_outputs=StructuredOutputsParams(json="{}"))) == Form(guided=True)


def catalogue(**policy: Any) -> Catalogue:
    spec = CircuitSpec(model=ANY_MODEL, emotions=(EmotionSpec(name="anger"),))
    return Catalogue(Policy(**policy), {"default": Served("default", spec, "digest", frozenset(), 0)}, unmarked={})


def asked(monkeypatch: pytest.MonkeyPatch, offer: Catalogue, request: Any) -> dict[str, Any]:
    monkeypatch.setattr(requests, "served_last", lambda: offer)
    params = requests.with_emotion.wrapper(type(request).to_sampling_params, request, 8, {})
    return dict(params.extra_args or {})


def test_a_request_with_tools_crosses_with_what_is_muted(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = asked(monkeypatch, catalogue(), chat(emotion="anger", tools=[TOOL]))[KEY]
    assert (wire.weights, wire.muted) == ({"anger": 1.0}, BITS["tools"])
    wire = asked(monkeypatch, catalogue(), chat(emotion="anger", tools=[TOOL], tool_choice="required"))[KEY]
    assert wire.weights == {}


def test_a_default_emotion_is_told_of_the_requests_form_in_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    offer = catalogue(default_emotion="anger")
    assert asked(monkeypatch, offer, chat()) == {}
    fields = asked(monkeypatch, offer, chat(tools=[TOOL]))
    assert fields == {"emotion_mute": ["tools"]}
    params = SamplingParams(extra_args=fields)
    requests._resolve_params(params, offer, False, None, 4)
    wire = Wire.of(params)
    assert wire is not None
    assert wire.muted == BITS["tools"]
    assert asked(monkeypatch, offer, chat(tools=[TOOL], tool_choice="required")) == {"emotion": "none"}


@pytest.fixture
def beginnings(monkeypatch: pytest.MonkeyPatch) -> tuple[Beginnings, Any]:
    """Of an engine with Qwen3's parser."""
    tokenizer = tokenizer_with("<think>", "</think>", "<|im_start|>", "<|im_end|>")
    settings = SimpleNamespace(markers=markers_of("qwen3", None, tokenizer))
    monkeypatch.setattr(spared, "settings_of", lambda _: settings)
    monkeypatch.setattr(spared, "tokenizer_of", lambda _: tokenizer)
    config: Any = SimpleNamespace(structured_outputs_config=SimpleNamespace(reasoning_parser="qwen3"))
    return Beginnings(config), tokenizer


def test_a_prompt_leaves_thinking_open_or_ends_it(beginnings: tuple[Beginnings, Any]) -> None:
    ours, tokenizer = beginnings
    wire = Wire("digest", {"anger": 1.0}, "answer", muted=THINKING)

    def within(prompt: str, wire: Wire = wire) -> int:
        tokens = tokenizer.encode(prompt, add_special_tokens=False)
        return ours.placed(wire, SimpleNamespace(prompt_token_ids=tokens)).within

    assert within("Look.") == THINKING
    assert within("Look.<think></think>") == 0
    # What a beam has written already is no prompt.
    assert within("Look.</think>", wire._replace(prompt_len=5)) == THINKING
    # Where only calls are spared it counts as well: of what is thought of, none is a call.
    assert within("Look.", wire._replace(muted=BITS["tools"])) == THINKING
    assert within("Look.", wire._replace(muted=0)) == 0


def test_a_prompt_of_embeddings_is_refused(beginnings: tuple[Beginnings, Any]) -> None:
    wire = Wire("digest", {"anger": 1.0}, "answer", muted=THINKING)
    with pytest.raises(VLLMValidationError, match="embeddings"):
        beginnings[0].placed(wire, SimpleNamespace(prompt_token_ids=None))


def test_without_a_reasoning_parser_nothing_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spared, "settings_of", lambda _: SimpleNamespace(markers={}))
    config: Any = SimpleNamespace(structured_outputs_config=SimpleNamespace(reasoning_parser=""))
    wire = Wire("digest", {"anger": 1.0}, "generation", muted=BITS["tools"])
    assert Beginnings(config).placed(wire, SimpleNamespace(prompt_token_ids=None)) is wire


def test_the_parser_is_told_what_the_chat_template_was(beginnings: tuple[Beginnings, Any]) -> None:
    ours, tokenizer = beginnings
    request = SimpleNamespace(prompt_token_ids=tokenizer.encode("Look.", add_special_tokens=False))
    seen = []

    async def add_request(*_: Any, **__: Any) -> int:
        seen.append(spared._template.get())
        return ours.placed(Wire("digest", {"anger": 1.0}, "answer", muted=THINKING), request).within

    def taken(**kwargs: Any) -> Any:
        return asyncio.run(keeping_template.wrapper(add_request, None, **kwargs))

    assert taken(reasoning_parser_kwargs={"chat_template_kwargs": {"enable_thinking": False}}) == 0
    assert taken(reasoning_parser_kwargs={"chat_template_kwargs": {}}) == THINKING
    assert taken() == THINKING
    assert seen == [{"enable_thinking": False}, {}, None]
    assert spared._template.get() is None
