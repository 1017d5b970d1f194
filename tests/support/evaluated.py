"""A model that is evaluated without an engine: a server that answers by rule, in two emotions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emovllm.circuit_files import load_circuit
from emovllm.readout import Reading
from emovllm_offline import intervals
from emovllm_offline.evaluation import generate
from emovllm_offline.evaluation import target as targets
from emovllm_offline.evaluation.client import Connection
from support.stub import Stub, stub_server

EMOTIONS = ("anger", "fear")
# What the model of these tests says: in an emotion, and beyond strength 1.5 over and over.
SAYS = {
    "anger": "I am furious about this outrage.",
    "fear": "I am terrified and so afraid.",
    "": "That is good to know.",
}
DIGEST = "d" * 64


def says(request: dict[str, Any]) -> str:
    system = request["messages"][0]["content"]
    prompted = next((name for name in EMOTIONS if name in system), "")
    # A request that names no emotion would get the server's own.
    emotion = request.get("emotion", "anger").rpartition("/")[2]
    if emotion == "none" or request.get("emotion_method") == "steering":
        emotion = prompted if emotion == "none" else ""
    text = SAYS[emotion]
    return " ".join([text] * 5) if request.get("emotion_strength", 0) > 1.5 else text


# What a probe of these labels reads: fear where anger was to be injected and the bus came late.
LABELS = (*EMOTIONS, "neutral")
READS = {"anger": (0.7, 0.2, 0.1), "fear": (0.2, 0.7, 0.1), "none": (0.3, 0.1, 0.6)}
PROBE = "p" * 64
READING = Reading(PROBE, 3, LABELS)


def reads(request: dict[str, Any]) -> dict[str, Any]:
    emotion = request.get("emotion", "none").rpartition("/")[2]
    if emotion == "anger" and "late" in request["messages"][-1]["content"]:
        emotion = "fear"
    reply, prompt = (dict(zip(LABELS, values, strict=True)) for values in (READS[emotion], (0.25, 0.25, 0.5)))
    return {"probe": PROBE, "layer": 3, "labels": list(LABELS), "reply": reply, "prompt": prompt}


def ids(text: str) -> list[int]:
    return [sum(map(ord, word)) for word in text.split()]


def answer(request: dict[str, Any], say: Callable[[dict[str, Any]], str] = says) -> bytes:
    """A token is a word, its id the sum of its letters, and the larger the less likely."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    reply: dict[str, Any] = {"id": "1", "created": 0, "model": request["model"], "choices": [choice]}
    if "prompt" in request:
        logprobs = [None, *({str(token): {"logprob": -token / 1000}} for token in request["prompt"][1:])]
        choice |= {"text": "", "prompt_logprobs": logprobs}
        return json.dumps({**reply, "object": "text_completion"}).encode()
    text = say(request)
    choice |= {"message": {"role": "assistant", "content": text}, "token_ids": [*ids(text), 0]}
    if "emotion_readout" in request:
        choice["emotion_readout"] = reads(request)
    prompt = ids(json.dumps(request["messages"]))
    return json.dumps({**reply, "object": "chat.completion", "prompt_token_ids": prompt}).encode()


def pages(digest: str, most: float, reading: Reading | None = None) -> dict[str, dict[str, Any]]:
    return {
        "/v1/models": {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "x"}]},
        "/v1/emotions": {
            "data": [{"id": name, "max_strength": most} for name in EMOTIONS],
            "circuits": [{"digest": digest}],
            "methods": ["circuit", "steering"],
            "reading": None if reading is None else reading.body(),
        },
    }


@pytest.fixture
def stub() -> Iterator[Stub]:
    """The server that answers by rule. It has nothing to read with."""
    with stub_server() as stub:
        stub.answer = answer
        stub.pages = pages(DIGEST, 2.0)
        yield stub


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, unrendered: None) -> None:
    """Relevance and intervals are tested where they are computed; pictures are looked at by few tests."""
    monkeypatch.setattr(intervals, "RESAMPLES", 20)
    monkeypatch.setattr("emovllm_offline.judges.embeddings.relevance", lambda users, replies: np.full(len(users), 0.25))


def serve_by(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub takes the place of every engine that is started, of whatever circuit."""

    class Server:
        def __init__(self, model: str, circuit: Path, log: Path, engine_args: Sequence[str] = (), **_: Any) -> None:
            reads = "--readout" in engine_args or "--probe" in engine_args
            stub.pages = pages(load_circuit(circuit).digest(), 9.0, READING if reads else None)

        def __enter__(self) -> Connection:
            return Connection(stub.url, "m")

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(targets, "local_server", Server)
    # The stub's model is no model of Hugging Face's.
    monkeypatch.setattr(
        generate, "ask_model", lambda planned, folder, model: generate.ask_server(planned, folder, Connection(stub.url))
    )
