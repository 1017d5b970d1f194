"""The reply to a batch file's line, in OpenAI's shape also where the line is refused."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx

from emovllm.misplaced import looks_ours
from emovllm_server.batch.files import Line

# What OpenAI's batches may ask of a model that writes; Azure's files have the same without /v1.
_VERSION = "/v1"
_URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


async def answer(line: Line, client: httpx.AsyncClient) -> dict[str, Any]:
    """A line's `status_code`, `request_id` and `body`, from the application that `client` reaches."""
    url, method, body = (line.request.get(name) for name in ("url", "method", "body"))
    route = url if url in _URLS else f"{_VERSION}{url}"
    if route not in _URLS:
        return _refused("url", f"must be one of {', '.join(_URLS)}")
    if method != "POST":
        return _refused("method", "must be POST")
    if not isinstance(body, dict):
        return _refused("body", "must be an object")
    if misplaced := next((name for name in line.request if looks_ours(name)), None):
        return _refused(misplaced[:60], "belongs into the body")
    if body.get("stream"):
        return _refused("stream", "cannot be used in a batch")
    # Not `json=`, which refuses NaN: that is the server's to do, by its field.
    reply = await client.post(route, content=json.dumps(body), headers={"content-type": "application/json"})
    try:
        content = reply.json()
    except ValueError:
        content = _error(reply.status_code, "InternalServerError", None, reply.text[:200])
    return {"status_code": reply.status_code, "request_id": str(uuid.uuid4()), "body": content}


def _refused(parameter: str, message: str) -> dict[str, Any]:
    error = _error(400, "BadRequestError", parameter, f"{parameter} {message}")
    return {"status_code": 400, "request_id": str(uuid.uuid4()), "body": error}


def _error(code: int, kind: str, parameter: str | None, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}
