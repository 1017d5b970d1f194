"""`--api-key` covers what is ours: whoever has no key learns nothing of the circuit, not even what would be refused."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from emovllm_server.api.routes import EmotionRoutes
from emovllm_server.arguments import parse
from emovllm_server.batch.engine import vllm_server
from emovllm_server.playground import page

KEY = "a-key-of-an-operator"


@pytest.fixture(scope="module")
def app() -> Any:
    """vLLM's application with a key, as a server builds it, without an engine behind."""
    with pytest.MonkeyPatch.context() as patch:
        # As `emovllm serve` has it: vLLM adds the endpoint plugins that are named.
        patch.setenv("VLLM_PLUGINS", "emovllm")
        _, args = parse(["--api-key", KEY], "serve")
        return vllm_server().build_app(args, ("generate",), None)


@pytest.fixture(scope="module")
def ours(app: Any) -> list[tuple[str, str]]:
    """(method, path) of all routes that we add, but the playground's files, which are open and the same everywhere
    (`tests/server/playground`)."""
    import fastapi

    alone = fastapi.FastAPI()
    EmotionRoutes().attach_router(alone)
    shared = {getattr(route, "path", None) for route in fastapi.FastAPI().routes}
    added = [route for route in alone.routes if getattr(route, "path", None) not in shared]
    added = [route for route in added if not route.path.startswith(page.PATH)]  # type: ignore[attr-defined]
    return [(method, route.path) for route in added for method in sorted(route.methods)]  # type: ignore[attr-defined]


def ask(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    async def asking() -> httpx.Response:
        # Without an engine, whatever gets past the key fails: that it got there is all that counts.
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(asking())


def test_our_routes_are_served(app: Any, ours: list[tuple[str, str]]) -> None:
    assert ("GET", "/v1/emotions") in ours
    assert {path for _, path in ours} <= {getattr(route, "path", None) for route in app.routes}


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {KEY}", KEY, "Bearer", f"Bearer {KEY}x"])
def test_none_of_our_routes_answers_without_the_key(app: Any, ours: list[tuple[str, str]], header: str | None) -> None:
    headers = {"authorization": header} if header else {}
    for method, path in ours:
        reply = ask(app, method, path, headers=headers)
        assert reply.status_code in (401, 403), f"{method} {path}: {reply.status_code}"
        assert "anger" not in reply.text


def test_the_key_opens_the_list(app: Any) -> None:
    app.state.emotions = None
    reply = ask(app, "GET", "/v1/emotions", headers={"authorization": f"Bearer {KEY}"})
    assert reply.status_code == 200


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/embeddings", "/v1/anything"])
def test_the_key_is_asked_before_an_emotion_is_looked_at(app: Any, path: str) -> None:
    body = {"emotion": "anger", "model": "m", "messages": []}
    assert ask(app, "POST", path, json=body).status_code == 401
    refused = ask(app, "POST", path, json=body, headers={"authorization": f"Bearer {KEY}"})
    assert refused.status_code == 400
    assert "has no effect on" in refused.text


@pytest.mark.parametrize(
    "path", ["//v1/emotions", "/v1//emotions", "/V1/emotions", "/x/../v1/emotions", "/v1%2Femotions", "/./v1/emotions"]
)
def test_no_other_spelling_of_the_path_gets_past_the_key(app: Any, path: str) -> None:
    assert ask(app, "GET", path).status_code in (401, 404)
