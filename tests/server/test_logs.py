"""What a server logs by default."""

from __future__ import annotations

import httpx
import pytest

from support.bodies import ROUTES
from support.servers import Server

pytestmark = pytest.mark.engine

SECRET = "zanzibar-marmalade-17"
PROMPTS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 4},
    "/v1/completions": {"prompt": SECRET, "max_tokens": 4},
    "/v1/responses": {"input": SECRET, "max_output_tokens": 4},
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        ({"emotion": "anger"}, 200),
        ({"emotion": "anger", "stream": True}, 200),
        ({"emotion": "joyful"}, 400),
        ({"emotion": ["anger"], "temperature": "warm"}, 400),
        ({"emotion": "anger", "emotion_strength": 99}, 400),
        ({"model": "another", "emotion": "anger"}, 404),
    ],
)
def test_prompts_are_not_logged(tiny_server: Server, route: str, fields: dict[str, object], status: int) -> None:
    body = {"model": "tiny", **PROMPTS[route], **fields}
    assert httpx.post(f"{tiny_server.url}{route}", json=body, timeout=60).status_code == status
    log = tiny_server.log.read_text()
    assert "POST" in log  # the requests themselves are
    assert SECRET not in log


def test_prompts_on_other_routes_are_not_logged(tiny_server: Server) -> None:
    for path, body in (
        ("/tokenize", {"model": "tiny", "prompt": SECRET, "emotion": "anger"}),
        ("/tokenize", {"model": "tiny", "prompt": SECRET}),
        ("/v1/chat/completions/batch", {"model": "tiny", "messages": [[{"role": "user", "content": SECRET}]]}),
        ("/v1/messages", {"model": "tiny", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 4}),
    ):
        httpx.post(f"{tiny_server.url}{path}", json=body, timeout=60)
    assert SECRET not in tiny_server.log.read_text()


def test_the_start_is_told_stage_by_stage(tiny_server: Server) -> None:
    log = tiny_server.log.read_text()
    told = [
        "Loading vLLM: done in ",
        "Starting the engine (",
        "Checking that every site of the circuit is live: done in ",
    ]
    places = [log.find(line) for line in [*told, "Starting the engine: done in ", "Starting vLLM server on"]]
    assert -1 not in places
    assert places == sorted(places)
