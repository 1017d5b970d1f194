"""What a server says of thinking, calls and guided output that are spared. What they are spared of is the engine's."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from support.bodies import ROUTES, body
from support.servers import Server

pytestmark = pytest.mark.engine

FUNCTION: dict[str, Any] = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}}}
CHAT = {"tools": [{"type": "function", "function": FUNCTION}]}
RESPONSES = {"tools": [{"type": "function", **FUNCTION}]}
OF_ROUTE = {"/v1/chat/completions": CHAT, "/v1/responses": RESPONSES}


def ask(server: Server, route: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{route}", json=body(route, **fields), timeout=120)


def message(reply: httpx.Response) -> Any:
    told = reply.json()["choices"][0]["message"]
    # Each call has a number of its own.
    return told["content"], [call["function"] for call in told.get("tool_calls") or []]


def test_servers_tell_which_phases_they_know(server: Server, tiny_server: Server) -> None:
    assert httpx.get(f"{server.url}/v1/emotions").json()["phases"] == ["tools"]
    assert httpx.get(f"{tiny_server.url}/v1/emotions").json()["phases"] == ["thinking"]


@pytest.mark.parametrize("route", OF_ROUTE)
def test_calls_are_spared_where_tools_are_offered(server: Server, route: str) -> None:
    spared = ask(server, route, emotion="anger", **OF_ROUTE[route])
    assert spared.status_code == 200, spared.text
    assert spared.json()["emotion"]["mute"] == ["tools"]
    assert spared.headers["x-emotion"].endswith("; mute=tools")
    for fields in ({"emotion_mute": [], **OF_ROUTE[route]}, {}):
        other = ask(server, route, emotion="anger", **fields)
        assert "mute" not in other.json()["emotion"]
        assert "mute" not in other.headers["x-emotion"]
    asked = ask(server, route, emotion="anger", emotion_mute=["tools"])
    assert asked.json()["emotion"]["mute"] == ["tools"]


def test_a_call_that_must_be_made_is_the_plain_models(server: Server) -> None:
    asked: dict[str, Any] = {**CHAT, "tool_choice": "required", "max_tokens": 24}
    plain, spared = (ask(server, "/v1/chat/completions", **asked, **fields) for fields in ({}, {"emotion": "anger"}))
    assert message(spared) == message(plain)
    assert spared.json()["emotion"]["steered"] is False
    assert spared.headers["x-emotion"].endswith("; mute=tools; steered=no")


@pytest.mark.parametrize("field", ["response_format", "structured_outputs"])
def test_guided_output_is_the_plain_models_where_that_is_asked(server: Server, field: str) -> None:
    form: Any = {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "[a-z ]{12,20}"}}[field]
    asked: dict[str, Any] = {field: form, "max_tokens": 24}
    route, mute = "/v1/chat/completions", {"emotion": "anger", "emotion_mute": ["guided"]}
    plain, spared = (ask(server, route, **asked, **fields) for fields in ({}, mute))
    assert message(spared) == message(plain)
    assert spared.json()["emotion"]["steered"] is False
    # Nothing guides it.
    free = ask(server, route, **mute)
    assert "steered" not in free.json()["emotion"]
    assert free.json()["emotion"]["mute"] == ["guided"]


@pytest.mark.parametrize("route", ROUTES)
def test_the_answer_alone_is_refused_without_a_reasoning_parser(server: Server, route: str) -> None:
    refused = ask(server, route, emotion="anger", emotion_scope="answer")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "emotion_scope"
    assert "--reasoning-parser" in refused.json()["error"]["message"]


@pytest.mark.parametrize("route", ROUTES)
def test_the_answer_alone_is_steered_with_one(tiny_server: Server, route: str) -> None:
    reply = ask(tiny_server, route, model="tiny", emotion="anger", emotion_scope="answer")
    assert reply.status_code == 200, reply.text
    assert reply.json()["emotion"]["scope"] == "answer"
    assert "scope=answer" in reply.headers["x-emotion"]
    refused = ask(tiny_server, route, model="tiny", emotion="anger", emotion_mute=["tools"])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "emotion_mute"
    assert "--tool-call-parser" in refused.json()["error"]["message"]
