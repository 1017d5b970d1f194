"""Clients that people have: what OpenAI's API does besides, with an emotion; the asynchronous client; LangChain."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI

from support.bodies import MESSAGE
from support.servers import Server

pytestmark = pytest.mark.engine

MOOD = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "score": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["mood", "score"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "note_mood", "description": "Notes a mood.", "parameters": MOOD, "strict": True},
}


def chat(client: openai.OpenAI, model: str, emotion: Any, **fields: Any) -> Any:
    extra = {"extra_body": {"emotion": emotion}} if emotion else {}
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 24, **fields, **extra}
    return client.chat.completions.create(model=model, messages=MESSAGE, **asked)


def test_structured_output_holds_with_an_emotion(client: openai.OpenAI, model: str) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "mood", "schema": MOOD, "strict": True}}
    for emotion in (None, "anger", {"fear": 0.5, "sadness": 0.5}):
        reply = chat(client, model, emotion, response_format=schema, max_tokens=64)
        said = json.loads(reply.choices[0].message.content)
        assert said["mood"] in ("good", "bad")
        assert 0 <= said["score"] <= 9


def test_a_named_tool_is_called_with_an_emotion(client: openai.OpenAI, model: str) -> None:
    choice = {"type": "function", "function": {"name": "note_mood"}}
    reply = chat(client, model, "happiness", tools=[TOOL], tool_choice=choice, max_tokens=128)
    [call] = reply.choices[0].message.tool_calls
    assert call.function.name == "note_mood"
    assert set(json.loads(call.function.arguments)) == {"mood", "score"}
    assert reply.emotion["mix"] == {"happiness": 1.0}


def test_logprobs_usage_stop_and_seed_are_as_without(client: openai.OpenAI, model: str) -> None:
    for emotion in (None, "anger"):
        reply = chat(client, model, emotion, logprobs=True, top_logprobs=3, n=2, temperature=0.9, seed=3)
        assert len(reply.choices) == 2
        assert reply.usage.completion_tokens == sum(len(choice.logprobs.content) for choice in reply.choices)
        assert all(len(token.top_logprobs) == 3 for token in reply.choices[0].logprobs.content)
    whole = chat(client, model, "anger").choices[0].message.content
    word = whole.split()[3]
    stopped = chat(client, model, "anger", stop=[word]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == whole[: whole.index(word)]
    # The steered token's own log-probabilities, not the plain model's.
    first = [chat(client, model, emotion, logprobs=True, max_tokens=1).choices[0] for emotion in (None, "anger")]
    assert first[0].logprobs.content[0].logprob != first[1].logprobs.content[0].logprob


def test_a_stream_may_end_with_its_usage(client: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 8}
    chunks = list(chat(client, model, "fear", **asked))
    assert chunks[-1].usage.completion_tokens == 8
    assert chunks[-1].choices == []


def test_the_asynchronous_client_streams_many_emotions_at_once(server: Server, model: str) -> None:
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

    async def ask(emotion: str) -> str:
        stream = await client.chat.completions.create(
            model=model, messages=MESSAGE, temperature=0, max_tokens=12, stream=True, extra_body={"emotion": emotion}
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async def ask_all() -> list[str]:
        return await asyncio.gather(*(ask(emotion) for emotion in ("anger", "fear", "sadness") * 2))

    replies = asyncio.run(ask_all())
    assert replies[:3] == replies[3:]
    assert len(set(replies)) == 3


def test_langchain_asks_by_extra_field_and_by_name(server: Server, client: openai.OpenAI, model: str) -> None:
    common: dict[str, Any] = {"base_url": f"{server.url}/v1", "api_key": "none", "temperature": 0, "max_tokens": 24}
    question = MESSAGE[0]["content"]
    by_field = ChatOpenAI(model=model, extra_body={"emotion": "surprise"}, **common).invoke(question).content
    by_name = ChatOpenAI(model=f"{model}:surprise", **common).invoke(question).content
    expected = chat(client, model, "surprise").choices[0].message.content
    assert by_field == by_name == expected
    streamed = "".join(str(chunk.content) for chunk in ChatOpenAI(model=f"{model}:surprise", **common).stream(question))
    assert streamed == expected
