"""What was read for a request, and what guards did to it, in its answer: in each choice, and in a stream's chunks as
their tokens come.

The engine's outputs are noted in the request's record (`emovllm.engine.transport`). Answers to requests that did not
ask, and in which no guard acted, pass unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from emovllm.engine.requests import Record
from emovllm_server.api.headers import is_stream, with_length

FIELD = "emotion_readout"
GUARD = "emotion_guard"

Message = Any
Send = Callable[[Message], Any]


class ReadoutAnswer:
    """Around a `send` of ASGI."""

    def __init__(self, send: Send, record: Record) -> None:
        self._send, self._record = send, record
        self._start: Message | None = None
        self._body = b""
        self._stream = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._stream = is_stream(message["headers"])
            # Where it is no stream, all was generated before its start.
            if message["status"] != 200 or not (self._stream or self._tells()):
                await self._send(message)
                return
            if self._stream:
                await self._send(message)
            # Otherwise its length is known with the body.
            self._start = message
        elif message["type"] != "http.response.body" or self._start is None:
            await self._send(message)
        elif self._stream:
            await self._send({**message, "body": self._events(message.get("body", b""))})
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._whole()

    def _tells(self) -> bool:
        return self._record.detail is not None or bool(self._record.acted)

    async def _whole(self) -> None:
        assert self._start is not None
        answer = json.loads(self._body)
        for choice in answer.get("choices", []):
            self._tell(choice, choice["index"])
        if "output" in answer:
            # Of a response, all that was generated for it is one reply.
            self._tell(answer, None)
        body = _dumped(answer)
        await self._send({**self._start, "headers": with_length(self._start["headers"], len(body))})
        await self._send({"type": "http.response.body", "body": body})

    def _events(self, body: bytes) -> bytes:
        if not self._tells():
            return body
        opening = b"data: "
        lines = body.split(b"\n")
        for number, line in enumerate(lines):
            if line.startswith(opening + b"{"):
                lines[number] = opening + _dumped(self._event(json.loads(line.removeprefix(opening))))
        return b"\n".join(lines)

    def _event(self, event: dict[str, Any]) -> dict[str, Any]:
        for choice in event.get("choices") or []:
            if choice.get("finish_reason") is not None:
                self._tell(choice, choice["index"], whole=True)
            elif not _opens(choice):
                self._tell_tokens(choice, choice["index"])
        if event.get("type") in ("response.completed", "response.incomplete"):
            self._tell(event["response"], None, whole=True)
        elif str(event.get("type", "")).endswith(".delta"):
            self._tell_tokens(event, None)
        return event

    def _tell(self, into: dict[str, Any], choice: int | None, whole: bool = False) -> None:
        """whole: at a stream's end, of whose tokens only those are told that were not."""
        acted = self._record.acted
        if told := [each.body() for index in sorted(acted) if choice in (None, index) for each in acted[index]]:
            into[GUARD] = told
        self._tell_readout(into, choice, whole)

    def _tell_readout(self, into: dict[str, Any], choice: int | None, whole: bool) -> None:
        readout, rest = self._record.readouts.whole(choice), self._record.readouts.untold(choice)
        if readout is None or self._record.detail is None:
            return
        told = readout.body(self._record.detail)
        if whole and "tokens" in told:
            told["tokens"] = rest.tokens() if rest is not None else []
        into[FIELD] = told

    def _tell_tokens(self, into: dict[str, Any], choice: int | None) -> None:
        if self._record.detail != "tokens":
            return
        rest = self._record.readouts.untold(choice)
        if rest is not None:
            into[FIELD] = {"tokens": rest.tokens()}


def _opens(choice: dict[str, Any]) -> bool:
    """Whether a chunk only says whose turn it is, which is sent when the first token is there."""
    delta = choice.get("delta") or {}
    return bool(delta.get("role")) and not delta.get("content")


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
