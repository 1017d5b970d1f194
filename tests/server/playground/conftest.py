"""A browser before a stand-in for the server, for each file of tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.chromium import chromium
from support.standin import StandIn, standin_server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Gone with the module: until then, its thread's event loop is taken."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def _standin() -> Iterator[StandIn]:
    with standin_server() as standin:
        yield standin


@pytest.fixture
def standin(_standin: StandIn) -> StandIn:
    """As it is at first."""
    vars(_standin).update({**vars(StandIn()), "url": _standin.url})
    return _standin


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """`visit(url, **context)`: the playground in a tab of its own. At the end: it asked no other host for anything, and
    the browser had nothing to complain of but refused requests."""
    contexts, complaints, hosts = [], [], set()

    def visit(url: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(10_000)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: hosts.add("/".join(request.url.split("/")[:3])))
        tab.goto(f"{url}/playground")
        hosts.discard(url)
        return tab

    yield visit
    urls = {"/".join(tab.url.split("/")[:3]) for context in contexts for tab in context.pages}
    for context in contexts:
        context.close()
    assert hosts <= urls
    assert [text for text in complaints if "Failed to load resource" not in text] == []
