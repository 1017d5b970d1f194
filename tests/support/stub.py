"""An OpenAI-compatible server for tests, in a thread: it answers, and fails, as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = str | int | bytes  # a reply, a status to fail with, or a body to send as it is


class Stub:
    """What the server does, and what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.answer: Callable[[dict], Answer] = lambda request: "fine"
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
        if isinstance(answer, bytes):
            return 200, answer
        completion = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}],
        }
        return 200, json.dumps(completion).encode()


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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub = Stub(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()


def in_turn(*answers: Answer) -> Callable[[dict], Answer]:
    """Answers one after the other; the last one stays."""
    left = list(answers)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]
