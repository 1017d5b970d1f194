"""Our own routes hold to the OpenAPI document that the server publishes of them."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import settings

from server_process import Server

pytestmark = pytest.mark.engine


@pytest.fixture(scope="session")
def described(tiny_server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{tiny_server.url}/openapi.json").include(tag="emovllm")


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(max_examples=25, derandomize=True, deadline=None, database=None)
def test_our_routes_answer_as_they_are_described(case: Any) -> None:
    case.call_and_validate()


def test_our_routes_are_described(described: Any) -> None:
    assert "/v1/emotions" in {operation.ok().path for operation in described.get_all_operations()}
