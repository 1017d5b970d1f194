"""Requests as JSON bodies, for each route that takes an emotion."""

from __future__ import annotations

from typing import Any

MESSAGE: Any = [{"role": "user", "content": "My neighbour borrowed my bike and brought it back with a flat tyre."}]
ROUTES = ["/v1/chat/completions", "/v1/completions", "/v1/responses"]


def body(route: str, **fields: Any) -> dict[str, Any]:
    prompt = {
        "/v1/chat/completions": {"messages": MESSAGE, "max_tokens": 8},
        "/v1/completions": {"prompt": "The rain", "max_tokens": 8},
        "/v1/responses": {"input": "Hello there", "max_output_tokens": 8},
    }[route]
    return {"model": "SmolLM2-135M-Instruct", "temperature": 0, **prompt, **fields}
