"""ASGI middleware around vLLM's own routes: model names that carry an emotion, and answers that tell what was applied.

What the emotion fields mean is decided where vLLM turns a request into sampling parameters (`emovllm.engine.requests`),
which leaves a record for whoever answers. The bytes of requests and answers without an emotion pass unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import JSONResponse

from emovllm.catalogue import Catalogue
from emovllm.engine.requests import Record, current
from emovllm.errors import EmotionError, Reason
from emovllm.fields import FIELDS
from emovllm.misplaced import NESTS, looks_ours, nested_field
from emovllm.values import short
from emovllm_server.api.headers import is_stream, with_length
from emovllm_server.api.readouts import ReadoutAnswer
from emovllm_server.metrics.collectors import count_refusal

# Where the emotion fields take effect. Everywhere else they are refused: vLLM would drop them without a word.
STEERED = ("/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions", "/v1/responses")
OURS = "/v1/emotions"
HEADER = b"x-emotion"

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refusal(Exception):
    """A request that is answered here, with an error of OpenAI's shape."""

    def __init__(self, status: int, message: str, parameter: str, reason: Reason) -> None:
        super().__init__(message)
        self.status, self.parameter, self.reason = status, parameter, reason

    def response(self) -> JSONResponse:
        kind = "NotFoundError" if self.status == 404 else "BadRequestError"
        error = {"message": str(self), "type": kind, "param": self.parameter, "code": self.status}
        return JSONResponse({"error": error}, status_code=self.status)


class EmotionMiddleware:
    """On the steered routes, reads `MODEL:anger` as a model and an emotion, and adds the header `x-emotion` and the
    object `emotion` to answers; on all others, refuses emotion fields."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path") or "").rstrip("/")
        if scope["type"] != "http" or scope["method"] != "POST" or path.startswith(OURS):
            await self.app(scope, receive, send)
            return
        body, rest = await _read(receive)
        try:
            if path in STEERED:
                state = scope["app"].state
                changed = _without_suffix(body, state.emotions, getattr(state, "openai_serving_models", None))
            else:
                changed = _without_emotion(body, path)
        except Refusal as refusal:
            count_refusal(refusal.reason)
            await refusal.response()(scope, receive, send)
            return
        if changed is not body:
            scope = {**scope, "headers": with_length(scope["headers"], len(changed))}
        receive = _replay(changed, rest, receive)
        if path not in STEERED:
            await self.app(scope, receive, send)
            return
        record = Record()
        token = current.set(record)
        try:
            outer = ReadoutAnswer(send, record).send
            answer = _Answer(outer, record, asked=_asks(changed), nested=path == "/v1/responses")
            await self.app(scope, receive, answer.send)
        finally:
            current.reset(token)
            if record.refused is not None:
                count_refusal(record.refused)


class _Answer:
    """Tells in an answer what was applied, on its way out."""

    def __init__(self, send: Send, record: Record, asked: bool, nested: bool) -> None:
        """asked: the request has an emotion field. nested: a stream's events hold the answer as `response`."""
        self._send, self._record = send, record
        self._asked, self._nested = asked, nested
        self._object = b""
        self._stream = False
        self._told = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = self._start(message)
        elif message["type"] == "http.response.body" and self._object and message.get("body"):
            message = {**message, "body": self._tell(message["body"])}
        await self._send(message)

    def _start(self, message: Message) -> Message:
        if message["status"] != 200:
            return message
        if self._asked and not self._record.resolved:
            # A path through vLLM that we do not know: better no answer than one without the emotion.
            raise RuntimeError("the request asks for an emotion, and vLLM made no sampling parameters of it")
        headers = list(message["headers"])
        applied = self._record.applied
        headers.append((HEADER, (applied.header() if applied is not None else "none").encode()))
        if applied is not None:
            self._object = b'"emotion":' + json.dumps(applied.body()).encode() + b","
            self._stream = is_stream(headers)
            if not self._stream:
                length = next((int(value) for name, value in headers if name.lower() == b"content-length"), None)
                if length is not None:
                    headers = with_length(headers, length + len(self._object))
        return {**message, "headers": headers}

    def _tell(self, body: bytes) -> bytes:
        if self._nested and self._stream:
            # Each event that holds the answer so far. Inside of JSON's strings a quote has a backslash before it.
            return body.replace(b'"response":{', b'"response":{' + self._object, 1)
        if self._told:
            return body
        opening = b"data: {" if self._stream else b"{"
        head, found, tail = body.partition(opening)
        if not found:  # such as a comment that keeps a connection alive
            return body
        self._told = True
        return head + found + self._object + tail


async def _read(receive: Receive) -> tuple[bytes, Message | None]:
    """A request's body, and what came in place of its end, if its client went away."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(chunks), message
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(chunks), None


def _replay(body: bytes, rest: Message | None, receive: Receive) -> Receive:
    messages = [] if rest is None else [rest]
    messages.insert(0, {"type": "http.request", "body": body, "more_body": rest is not None})

    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    return replay


def _object(body: bytes) -> dict[str, Any]:
    """A JSON body, or {} where it is none: vLLM answers that as it does."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _asks(body: bytes) -> bool:
    return _may_have(body, b"emotion") and any(_object(body).get(field) is not None for field in FIELDS)


def _may_have(body: bytes, word: bytes) -> bool:
    """Whether a JSON text may have a word, which may be written in escapes."""
    return word in body or b"\\u" in body


def _without_emotion(body: bytes, path: str) -> bytes:
    """Raises: Refusal where a body has an emotion field."""
    if _may_have(body, b"emotion"):
        data = _object(body)
        for field, value in data.items():
            nested = nested_field(value) if field in NESTS else None
            if value is not None and (looks_ours(field) or nested is not None):
                message = f"{nested or field[:60]} has no effect on {path[:100]}; it works on {', '.join(STEERED)}"
                raise Refusal(400, message, field[:60], "wrong_route")
    return body


def _without_suffix(body: bytes, catalogue: Catalogue | None, models: Any) -> bytes:
    """A body whose model's name carries an emotion, as one with an `emotion`. Raises: Refusal."""
    if catalogue is None or models is None:
        return body
    served = {*(path.name for path in models.base_model_paths), *models.lora_requests}
    # Some encoders escape the slashes of a name.
    if not any(_may_have(body, f"{name.rpartition('/')[2]}:".encode()) for name in served):
        return body
    data = _object(body)
    model = data.get("model")
    if not isinstance(model, str) or model in served:
        return body
    base, _, suffix = model.rpartition(":")
    if base not in served:
        return body
    if data.get("emotion") is not None:
        message = f"the model's name {short(model)} asks for an emotion, and so does `emotion`; give one of them"
        raise Refusal(400, message, "emotion", "bad_value")
    try:
        data["emotion"] = catalogue.parse_suffix(suffix)
    except EmotionError as error:
        raise Refusal(404, f"the model {short(model)} does not exist: {error}", "model", error.reason) from None
    data["model"] = base
    return json.dumps(data).encode()
