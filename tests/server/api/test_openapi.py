"""Our own routes hold to the OpenAPI document that the server publishes of them."""

from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import given, settings

from support.bodies import ROUTES, body
from support.servers import Server

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def operations(tiny_server: Server) -> dict[str, Any]:
    described = schemathesis.openapi.from_url(f"{tiny_server.url}/openapi.json").include(tag="emovllm")
    found = [result.ok() for result in described.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def test_our_routes_are_described(operations: dict[str, Any]) -> None:
    assert "GET /v1/emotions" in operations


@pytest.mark.parametrize("route", ROUTES)
def test_read_outs_are_as_they_are_described(tiny_server: Server, route: str) -> None:
    described = httpx.get(f"{tiny_server.url}/openapi.json").json()
    answer = described["paths"][route]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    request = body(route, model="tiny", emotion_readout="tokens")
    told = httpx.post(f"{tiny_server.url}{route}", json=request, timeout=60).json()
    whole = {**answer, "components": described["components"]}
    jsonschema.validate(told, whole)
    readout = (told if route == "/v1/responses" else told["choices"][0])["emotion_readout"]
    model = described["components"]["schemas"]["EmotionReadout"]
    assert set(readout) == set(model["properties"])
    # What is described is what is looked at.
    readout["layer"] = "the best"
    with pytest.raises(jsonschema.ValidationError, match="'the best' is not of type 'integer'"):
        jsonschema.validate(told, whole)


def _ask(cases: Any) -> None:
    @settings(max_examples=25, derandomize=True, deadline=None, database=None)
    @given(cases)
    def answers(case: Any) -> None:
        reply = case.call(timeout=60)
        assert reply.status_code < 500, reply.text
        if reply.status_code < 400:
            case.validate_response(reply)

    answers()


def test_our_routes_answer_as_they_are_described(operations: dict[str, Any]) -> None:
    for operation in operations.values():
        _ask(operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE))
        if operation.body:
            _ask(operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
