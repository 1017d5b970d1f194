"""The page on which a person labels texts, served on this machine alone."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

from emovllm.errors import DataError, OptionError
from emovllm_offline.labelling.texts import Labelling
from emovllm_offline.reporting.page import render

HOST = "127.0.0.1"
# A request that is longer than any text that is worth a label.
_LONGEST = 2**20


def serve(labelling: Labelling, port: int = 0) -> ThreadingHTTPServer:
    """A server of the page, which is not running yet. port: 0 for any that is free.

    Raises: OptionError where the port is taken.
    """
    try:
        return ThreadingHTTPServer((HOST, port), _handler(labelling))
    except OSError as error:
        raise OptionError(f"--port {port}: {error.strerror}; give another, or 0 for any") from None


def _handler(labelling: Labelling) -> type[BaseHTTPRequestHandler]:
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/":
                page = render("label.j2", title="What does the text show?", labels=labelling.labels)
                self._send(200, page.encode(), "text/html; charset=utf-8")
            elif self.path == "/text":
                self._tell(200)
            else:
                self._send(404, b"", "text/plain")

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length") or "0"
            if not length.isdecimal() or int(length) > _LONGEST:
                self._send(413, b"", "text/plain", last=True)
                return
            said = self.rfile.read(int(length))
            # Pages of other sites may send here too, but not JSON.
            if self.headers.get("Content-Type") != "application/json":
                self._send(415, b"", "text/plain")
                return
            try:
                with lock:
                    self._take(json.loads(said))
            except (DataError, ValueError, KeyError, TypeError) as error:
                self._tell(400, str(error))
            else:
                self._tell(200)

        def _take(self, said: Any) -> None:
            if self.path == "/label":
                labelling.say(said["text"], said["label"])
            elif self.path == "/undo":
                labelling.undo()
            else:
                raise ValueError("no such page")

        def _tell(self, status: int, error: str | None = None) -> None:
            state = {"text": labelling.next(), "done": labelling.done, "total": labelling.total, "error": error}
            self._send(status, json.dumps(state).encode(), "application/json")

        def _send(self, status: int, body: bytes, kind: str, last: bool = False) -> None:
            self.send_response(status)
            if last:
                # What follows on the connection is a body that was not read.
                self.send_header("Connection", "close")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the page shows how far one is."""

    return Handler
