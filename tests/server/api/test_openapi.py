"""Our own routes hold to the OpenAPI document that the server publishes of them."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings

from support.servers import Server

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def operations(tiny_server: Server) -> dict[str, Any]:
    described = schemathesis.openapi.from_url(f"{tiny_server.url}/openapi.json").include(tag="emovllm")
    found = [result.ok() for result in described.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def test_our_routes_are_described(operations: dict[str, Any]) -> None:
    assert "GET /v1/emotions" in operations


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
