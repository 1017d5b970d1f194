"""An OpenAI-compatible server for tests, in a thread: it answers, and fails, as it is told.

Beside single answers it has the manners of endpoints as they are met: `newer_openai`, `without_system_role`,
`filtering`, each around another answer.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Refusal(NamedTuple):
    """An error in OpenAI's shape."""

    message: str
    param: str | None = None
    code: str | None = None
    status: int = 400


# a reply, a status to fail with, an error, or a body to send as it is
Answer = str | int | Refusal | bytes
Answering = Callable[[dict], Answer]


class Stub:
    """What the server does, and what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.answer: Answering = lambda request: "fine"
        self.pages: dict[str, dict] = {}  # what a GET of a path gives
        self.busy = self.most_busy = 0
        self.delay = 0.0
        self.lock = threading.Lock()

    def respond(self, request: dict, headers: dict) -> tuple[int, bytes]:
        with self.lock:
            self.requests.append(request)
            self.headers.append(headers)
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
        try:
            time.sleep(self.delay)
            with self.lock:
                answer = self.answer(request)
        finally:
            with self.lock:
                self.busy -= 1
        if isinstance(answer, int):
            return answer, json.dumps({"error": {"message": f"told to fail with {answer}"}}).encode()
        if isinstance(answer, Refusal):
            error = {"message": answer.message, "type": "invalid_request_error", "param": answer.param}
            return answer.status, json.dumps({"error": {**error, "code": answer.code}}).encode()
        return 200, completion(answer) if isinstance(answer, str) else answer


def completion(content: Any, finish_reason: str = "stop", **message: Any) -> bytes:
    """A chat's answer; message: further fields of its message."""
    choice = {"finish_reason": finish_reason, "message": {"role": "assistant", "content": content, **message}}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0, **choice}]}
    return json.dumps(body).encode()


def newer_openai(answer: Answering) -> Answering:
    """Takes max_completion_tokens alone, and no temperature but 1."""

    def answering(request: dict) -> Answer:
        if "max_tokens" in request:
            message = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            return Refusal(f"Unsupported parameter: {message}", "max_tokens", "unsupported_parameter")
        if request.get("temperature", 1) != 1:
            message = "Unsupported value: 'temperature' does not support 0. Only the default (1) value is supported."
            return Refusal(message, "temperature", "unsupported_value")
        return answer(request)

    return answering


def without_system_role(answer: Answering) -> Answering:
    """Its chat template refuses messages of the system."""
    return lambda request: (
        Refusal("System role not supported") if request["messages"][0]["role"] == "system" else answer(request)
    )


def counting(template: Callable[[dict], str], answer: Answering) -> Answering:
    """Says how many words the prompt has that its template makes of each message."""

    def answering(request: dict) -> bytes:
        prompt = " ".join(map(template, request["messages"]))
        body = json.loads(completion(answer(request)))
        return json.dumps({**body, "usage": {"prompt_tokens": len(prompt.split())}}).encode()

    return answering


def filtering(word: str, answer: Answering) -> Answering:
    """Refuses whatever holds a word."""
    refusal = Refusal("The prompt triggered the content management policy.", "prompt", "content_filter")
    return lambda request: refusal if word in json.dumps(request.get("messages", "")) else answer(request)


@contextmanager
def stub_server() -> Iterator[Stub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(*stub.respond(json.loads(body), {k.lower(): v for k, v in self.headers.items()}))

        def do_GET(self) -> None:
            page = stub.pages.get(self.path)
            self.reply(404 if page is None else 200, json.dumps(page or {}).encode())

        def reply(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            # The client's own wait begins at half a second: this one keeps the tests quick.
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with in_thread(Handler) as url:
        stub = Stub(f"{url}/v1")
        yield stub


@contextmanager
def in_thread(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server in a thread, by its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def in_turn(*answers: Answer) -> Answering:
    """Answers one after the other; the last one stays."""
    left = list(answers)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]
