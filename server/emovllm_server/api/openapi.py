"""The emotion fields of requests and the read-out of answers in the server's OpenAPI description, which vLLM's own
models do not have."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from emovllm.fields import json_schema
from emovllm.guards import Action
from emovllm_server.api.readouts import FIELD, GUARD

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


class EmotionGuard(BaseModel):
    """A guard of the server's operator that acted in a reply. In a stream the last chunk of a choice has it."""

    guard: str = Field(description="LABEL>BOUNDxTOKENS: what was read, and for how many tokens in a row.")
    action: Action = Field(description="flag: nothing but this; stop: the reply ended with the token.")
    token: int = Field(description="Of the reply, counted from 0: the one with which it acted.")


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
        for model in (EmotionReadout, EmotionGuard):
            models[model.__name__] = model.model_json_schema()
        for route, in_choices in _ANSWERS.items():
            if route in schema["paths"]:
                _describe_answer(schema["paths"][route]["post"], in_choices)
        return schema

    app.openapi = described  # type: ignore[method-assign]


def _describe_answer(operation: dict[str, Any], in_choices: bool) -> None:
    """vLLM describes no answer; what of it is ours is described all the same."""
    content = operation["responses"]["200"].setdefault("content", {})
    answer = content.setdefault("application/json", {}).setdefault("schema", {})
    readout, guard = ({"$ref": f"#/components/schemas/{model.__name__}"} for model in (EmotionReadout, EmotionGuard))
    read: dict[str, Any] = {FIELD: readout, GUARD: {"type": "array", "items": guard}}
    if in_choices:
        read = {"choices": {"type": "array", "items": {"type": "object", "properties": read}}}
    answer.setdefault("properties", {}).update(read)
