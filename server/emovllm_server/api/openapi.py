"""The emotion fields in the server's OpenAPI description, which vLLM's own models do not have."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from emovllm.emotion import SCOPES

_REQUESTS = ("ChatCompletionRequest", "BatchChatCompletionRequest", "CompletionRequest", "ResponsesRequest")

FIELDS: dict[str, dict[str, Any]] = {
    "emotion": {
        "anyOf": [
            {"type": "string"},
            {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 1},
            {"type": "null"},
        ],
        "default": None,
        "title": "Emotion",
        "description": "An emotion that GET /v1/emotions lists, weights of several, or `none` for the plain model.",
        "examples": ["anger", {"anger": 0.7, "fear": 0.3}],
    },
    "emotion_strength": {
        "anyOf": [{"type": "number"}, {"type": "null"}],
        "default": None,
        "title": "Emotion strength",
        "description": "1.0 is the recommended strength and the default; negative suppresses.",
    },
    "emotion_scope": {
        "anyOf": [{"type": "string", "enum": list(SCOPES)}, {"type": "null"}],
        "default": None,
        "title": "Emotion scope",
        "description": "The tokens that are steered: the prompt's last and the reply, the prompt's last alone, or all.",
    },
}


def describe_emotions(app: FastAPI) -> None:
    """Has the app's OpenAPI description show the emotion fields of the requests that take them."""
    openapi = app.openapi

    def described() -> dict[str, Any]:
        schema = openapi()
        models = schema.get("components", {}).get("schemas", {})
        for name in _REQUESTS:
            if name in models:
                models[name].setdefault("properties", {}).update(FIELDS)
        return schema

    app.openapi = described  # type: ignore[method-assign]
