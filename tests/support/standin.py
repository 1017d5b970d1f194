"""A stand-in for a server with a playground: the real page, and replies in fixed chunks, as they are told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from emovllm_server.playground import page

LABELS = ["anger", "fear", "happiness", "neutral"]
EMOTIONS = [
    {"id": name, "object": "emotion", "circuit": "default", "max_strength": cap, "scores": {}}
    for name, cap in (("anger", 1.5), ("fear", 1.2), ("happiness", 2.0))
]
CIRCUIT = {"id": "default", "object": "circuit", "digest": "0123456789abcdef", "model": "some/model"}

Chunk = dict[str, Any]
# The chunks of a reply, an event for the stream to wait for, or an error with its status.
Answer = list[Chunk | threading.Event] | tuple[int, Any]


def text(content: str, *readings: list[float], **choice: Any) -> Chunk:
    """A chunk with the readings of its tokens."""
    told = {"emotion_readout": {"tokens": list(readings)}} if readings else {}
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None, **told, **choice}]}


def end(readings: list[list[float]]) -> Chunk:
    """The last chunk; readings: of all tokens."""
    means = [sum(column) / len(readings) for column in zip(*readings, strict=True)]
    read = {"probe": "p", "layer": 2, "labels": LABELS, "tokens": []}
    read |= {"prompt": dict(zip(LABELS, readings[0], strict=True)), "reply": dict(zip(LABELS, means, strict=True))}
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "emotion_readout": read}]}


def reply(*pieces: tuple[str, list[float]], applied: dict[str, Any] | None = None) -> list[Chunk | threading.Event]:
    """Pieces of text, each of one token, with its reading. applied: what the first chunk tells of the emotion."""
    first: Chunk = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    if applied is not None:
        first["emotion"] = applied
    return [first, *(text(content, reading) for content, reading in pieces), end([reading for _, reading in pieces])]


def told(request: dict[str, Any]) -> Answer:
    """A reply that says what the request asked for, as the server's own depend on it."""
    emotion, strength = request.get("emotion", "nothing"), request.get("emotion_strength", 1)
    said = request["messages"][-1]["content"]
    systems = [message["content"] for message in request["messages"] if message["role"] == "system"]
    steered = emotion not in ("none", "nothing")
    anger = 0.8 if steered else 0.1
    reading = [anger, 0.05, 0.05, 0.9 - anger]
    pieces = [("You", reading), (" said ", reading), (said, reading), (f" [{json.dumps(emotion)}", reading)]
    mix = emotion if isinstance(emotion, dict) else {emotion: 1.0}
    applied = {"mix": mix, "strength": strength, "scope": "generation", "circuit": {"name": "default", "digest": "0"}}
    pieces += [(f" x{strength}]", reading), (f" below {systems}", reading)]
    return reply(*pieces, applied=applied if steered else None)


@dataclass
class StandIn:
    """What it has and how it answers; `requests`: what it was asked."""

    url: str = ""
    key: str | None = None
    answer: Callable[[dict[str, Any]], Answer] = told
    emotions: list[dict[str, Any]] = field(default_factory=lambda: EMOTIONS)
    circuits: list[dict[str, Any]] = field(default_factory=list)
    reading: dict[str, Any] | None = field(
        default_factory=lambda: {"probe": "0123456789abcdef", "layer": 2, "labels": LABELS}
    )
    phases: list[str] = field(default_factory=list)
    guards: list[dict[str, Any]] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    # How many streams were left before their end.
    left: int = 0

    def refusal(self, request: Request) -> JSONResponse | None:
        """vLLM's, of whoever has no key."""
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return JSONResponse({"error": "Unauthorized"}, status_code=401)

    async def stream(self, answer: list[Chunk | threading.Event]) -> AsyncIterator[str]:
        try:
            for chunk in answer:
                if isinstance(chunk, threading.Event):
                    while not chunk.is_set():
                        await asyncio.sleep(0.01)
                else:
                    yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.left += 1
            raise


def application(standin: StandIn) -> FastAPI:
    app = FastAPI()
    page.attach(app)
    app.state.emotion_playground = True

    @app.get("/v1/models")
    async def models(request: Request) -> Any:
        # As a server lists them: with the names that carry an emotion.
        names = [(f"some-model:{emotion['id']}", "some-model") for emotion in standin.emotions]
        listed = [("some-model", None), *((name, "some-model") for name in standin.adapters), *names]
        cards = [{"id": name, "object": "model", "parent": parent} for name, parent in listed]
        return standin.refusal(request) or {"object": "list", "data": cards}

    @app.get("/v1/emotions")
    async def emotions(request: Request) -> Any:
        names = [emotion["id"] for emotion in standin.emotions]
        circuits = standin.circuits or [{**CIRCUIT, "scope": "generation", "emotions": names}]
        listed = {"object": "list", "data": standin.emotions, "circuits": circuits, "methods": ["circuit"]}
        listed |= {"reading": standin.reading, "phases": standin.phases, "guards": standin.guards}
        return standin.refusal(request) or listed

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        if (refusal := standin.refusal(request)) is not None:
            return refusal
        asked = await request.json()
        standin.requests.append(asked)
        answer = standin.answer(asked)
        if isinstance(answer, tuple):
            status, message = answer
            return JSONResponse({"error": {"message": message, "code": status}}, status_code=status)
        return StreamingResponse(standin.stream(answer), media_type="text/event-stream")

    return app


@contextmanager
def standin_server() -> Iterator[StandIn]:
    standin = StandIn()
    # Streams that wait for ever do not hold up the end.
    options = {"host": "127.0.0.1", "port": 0, "log_level": "error", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(application(standin), **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        if not thread.is_alive():
            raise RuntimeError("the stand-in did not start")
    standin.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield standin
    finally:
        server.should_exit = True
        thread.join(10)
