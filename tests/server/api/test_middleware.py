"""The middleware around routes that are not vLLM's: what it adds, and what it never lets pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient

from emovllm.applied import Applied, Served
from emovllm.catalogue import Catalogue
from emovllm.engine.requests import current
from emovllm.spec import CircuitSpec, EmotionSpec
from emovllm_server.api.middleware import EmotionMiddleware
from support.specs import ANY_MODEL

ROUTE = "/v1/completions"
SPEC = CircuitSpec(
    model=ANY_MODEL,
    emotions=(EmotionSpec(name="anger"), EmotionSpec(name="fear")),
)
SERVED = Served("default", SPEC, "d" * 64, frozenset(), 0)
APPLIED = Applied(SERVED, {"anger": 1.0}, 1.0, None, "generation")


def app_with(answer: Callable[[Request], Any], path: str = ROUTE) -> TestClient:
    app = FastAPI()
    app.add_middleware(EmotionMiddleware)
    app.state.emotions = Catalogue(circuits={"default": SERVED})
    names = [SimpleNamespace(name="org/model"), SimpleNamespace(name="a:b")]
    app.state.openai_serving_models = SimpleNamespace(base_model_paths=names, lora_requests={"lora": None})

    async def route(request: Request) -> Any:
        return await answer(request)

    app.add_api_route(path, route, methods=["POST"])
    return TestClient(app, raise_server_exceptions=False)


async def echo(request: Request) -> JSONResponse:
    note(APPLIED)
    return JSONResponse({"got": json.loads(await request.body())})


def note(applied: Applied | None) -> None:
    record = current.get()
    assert record is not None
    record.resolved, record.applied = True, applied


def test_an_answer_to_an_emotion_that_vllm_never_saw_is_withheld() -> None:
    async def forgetful(request: Request) -> JSONResponse:
        return JSONResponse({"choices": []})

    client = app_with(forgetful)
    assert client.post(ROUTE, json={"emotion": "anger"}).status_code == 500
    assert client.post(ROUTE, content=b'{"emo\\u0074ion": "anger"}').status_code == 500
    plain = client.post(ROUTE, json={"prompt": "emotion"})
    assert plain.status_code == 200
    assert plain.content == b'{"choices":[]}'


def test_a_plain_answer_passes_byte_by_byte() -> None:
    text = b'{ "choices" : [] }\n'

    async def plain(request: Request) -> StreamingResponse:
        note(None)
        return StreamingResponse(iter([text[:3], text[3:]]), media_type="application/json")

    reply = app_with(plain).post(ROUTE, json={})
    assert reply.content == text
    assert reply.headers["x-emotion"] == "none"


@pytest.mark.parametrize("together", [False, True])
def test_a_stream_that_begins_with_comments_tells_it_once(together: bool) -> None:
    events = [b": keep-alive\n\n", b'data: {"n":1,"text":"data: {"}\n\n', b'data: {"n":2}\n\n', b"data: [DONE]\n\n"]

    async def stream(request: Request) -> StreamingResponse:
        note(APPLIED)

        return StreamingResponse(iter([b"".join(events)] if together else events), media_type="text/event-stream")

    reply = app_with(stream).post(ROUTE, json={"emotion": "anger"})
    lines = [line for line in reply.text.split("\n") if line.startswith("data: {")]
    first, second = (json.loads(line.removeprefix("data: ")) for line in lines)
    assert first == {"emotion": APPLIED.body(), "n": 1, "text": "data: {"}
    assert second == {"n": 2}
    assert reply.text.startswith(": keep-alive\n\ndata: {")


@pytest.mark.parametrize(
    ("model", "base", "emotion"),
    [
        ("org/model:anger", "org/model", {"anger": 1.0}),
        ("lora:anger+fear", "lora", {"anger": 0.5, "fear": 0.5}),
        ("a:b:fear", "a:b", {"fear": 1.0}),
        ("a:b", "a:b", None),
        ("other:anger", "other:anger", None),
    ],
)
def test_a_suffix_is_taken_off_served_names_alone(model: str, base: str, emotion: Any) -> None:
    body = {"model": model, "prompt": "caf\u00e9 \U0001f600", "nested": {"model": "org/model:anger"}}
    got = app_with(echo).post(ROUTE, json=body).json()["got"]
    assert got == {**body, "model": base} | ({"emotion": emotion} if emotion else {})
    # Some encoders escape slashes, and all that is not ASCII.
    escaped = json.dumps(body).replace("/", "\\/")
    assert app_with(echo).post(ROUTE, content=escaped).json()["got"] == got


def test_emotions_are_refused_where_they_would_do_nothing() -> None:
    client = app_with(echo, "/tokenize")
    for name in ("emotion", "emotion_strength", "emotion_scope", "emotion_method"):
        refused = client.post("/tokenize", json={name: "x"})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == name
    for field in ("extra_body", "custom_params", "metadata"):
        nested = client.post("/tokenize", json={field: {"emotion": "x"}})
        assert nested.status_code == 400
        assert nested.json()["error"]["param"] == field
    assert client.post("/tokenize", json={"emotions": "x"}).status_code == 400
    assert client.post("/tokenize", json={"prompt": "emotion", "metadata": {"topic": "emotion"}}).status_code != 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"emotion"', b"[" * 100_000])
def test_what_is_no_json_object_is_for_the_route_to_refuse(body: bytes) -> None:
    async def length(request: Request) -> JSONResponse:
        note(None)
        return JSONResponse({"length": len(await request.body())})

    assert app_with(length).post(ROUTE, content=body).json() == {"length": len(body)}
