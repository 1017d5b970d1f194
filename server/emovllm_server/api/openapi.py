"""The emotion fields of requests and the read-out of answers in the server's OpenAPI description, which vLLM's own
models do not have."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from emovllm.fields import json_schema
from emovllm_server.api.readouts import FIELD

_REQUESTS = ("ChatCompletionRequest", "BatchChatCompletionRequest", "CompletionRequest", "ResponsesRequest")
# The routes whose answers tell what was read, and whether in each choice or of the whole.
_ANSWERS = {
    "/v1/chat/completions": True,
    "/v1/chat/completions/batch": True,
    "/v1/completions": True,
    "/v1/responses": False,
}


class EmotionReadout(BaseModel):
    """What a probe reads in the states that wrote a reply, where the request asked by `emotion_readout`. In a stream
    each chunk has the `tokens` that came with it, and the last of a choice all else."""

    probe: str = Field(description="The probe's digest.")
    layer: int = Field(description="The layer that is read after.")
    labels: list[str] = Field(description="In the order in which `tokens` have them.")
    prompt: dict[str, float] = Field(description="Probabilities at the prompt's last token, which wrote the first.")
    reply: dict[str, float] = Field(description="Their mean over the reply's tokens.")
    tokens: list[list[float]] | None = Field(None, description="Of each token; where they were asked for.")


def describe_emotions(app: FastAPI) -> None:
    """Has the app's OpenAPI description show the emotion fields of the requests that take them, and the read-out of
    their answers."""
    openapi = app.openapi

    def described() -> dict[str, Any]:
        schema = openapi()
        models = schema.setdefault("components", {}).setdefault("schemas", {})
        for name in _REQUESTS:
            if name in models:
                models[name].setdefault("properties", {}).update(json_schema())
        models[EmotionReadout.__name__] = EmotionReadout.model_json_schema()
        for route, in_choices in _ANSWERS.items():
            if route in schema["paths"]:
                _describe_answer(schema["paths"][route]["post"], in_choices)
        return schema

    app.openapi = described  # type: ignore[method-assign]


def _describe_answer(operation: dict[str, Any], in_choices: bool) -> None:
    """vLLM describes no answer; what of it is ours is described all the same."""
    content = operation["responses"]["200"].setdefault("content", {})
    answer = content.setdefault("application/json", {}).setdefault("schema", {})
    read: dict[str, Any] = {FIELD: {"$ref": f"#/components/schemas/{EmotionReadout.__name__}"}}
    if in_choices:
        read = {"choices": {"type": "array", "items": {"type": "object", "properties": read}}}
    answer.setdefault("properties", {}).update(read)
