"""The emotion fields in the server's OpenAPI description, which vLLM's own models do not have."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from emovllm.emotion import json_schema

_REQUESTS = ("ChatCompletionRequest", "BatchChatCompletionRequest", "CompletionRequest", "ResponsesRequest")


def describe_emotions(app: FastAPI) -> None:
    """Has the app's OpenAPI description show the emotion fields of the requests that take them."""
    openapi = app.openapi

    def described() -> dict[str, Any]:
        schema = openapi()
        models = schema.get("components", {}).get("schemas", {})
        for name in _REQUESTS:
            if name in models:
                models[name].setdefault("properties", {}).update(json_schema())
        return schema

    app.openapi = described  # type: ignore[method-assign]
