"""Routes beside vLLM's own: a plugin of the group `vllm.endpoint_plugins`."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from emovllm.emotion import FIELDS
from emovllm.engine.config import Unsupported
from emovllm.engine.frontend import Served, served_by

# Where the emotion fields take effect. Everywhere else they are refused: vLLM would drop them without a word.
_STEERED = ("/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions", "/v1/responses")


class EmotionRoutes:
    """`GET /v1/emotions`, and a guard on the routes that do not know of emotions."""

    name = "emovllm"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.add_api_route("/v1/emotions", list_emotions, methods=["GET"], tags=["emovllm"])
        app.add_middleware(RefuseElsewhere)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        served = served_by(engine_client.vllm_config) if engine_client is not None else None
        configured = isinstance(args.additional_config, dict) and "emovllm" in args.additional_config
        if configured and served is None:
            raise Unsupported("a circuit is configured, but this server's engine has none")
        state.emotions = served


async def list_emotions(request: Request) -> JSONResponse:
    """The emotions that requests may ask for, with their strengths and measured scores."""
    served: Served | None = request.app.state.emotions
    if served is None:
        return JSONResponse({"object": "list", "data": []})
    data = [
        {
            "id": emotion.name,
            "object": "emotion",
            # As `emotion_strength` takes it: 1.0 is the recommended strength.
            "recommended_strength": 1.0,
            "max_strength": emotion.maximal / emotion.recommended,
            "scores": emotion.scores,
        }
        for emotion in served.spec.emotions
    ]
    circuit = {
        "digest": served.digest,
        "model": served.spec.model.id,
        "scope": served.spec.scope,
        "methods": served.methods,
    }
    return JSONResponse({"object": "list", "data": data, "circuit": circuit})


class RefuseElsewhere:
    """ASGI middleware: a POST with an emotion field to a route that would ignore it gets a 400."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path") or "")
        if scope["type"] != "http" or scope["method"] != "POST" or path.rstrip("/") in _STEERED:
            await self.app(scope, receive, send)
            return
        messages = []
        body = b""
        while True:
            message = await receive()
            messages.append(message)
            body += message.get("body", b"")
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        if field := _emotion_field(body):
            await _refusal(field, path)(scope, receive, send)
            return

        async def replay() -> Any:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, replay, send)


def _emotion_field(body: bytes) -> str | None:
    if b"emotion" not in body and b"\\u" not in body:
        return None
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return next((field for field in FIELDS if data.get(field) is not None), None) if isinstance(data, dict) else None


def _refusal(field: str, path: str) -> JSONResponse:
    message = f"{field} has no effect on {path[:100]}; it works on {', '.join(_STEERED)}"
    error = {"message": message, "type": "BadRequestError", "param": field, "code": 400}
    return JSONResponse({"error": error}, status_code=400)
