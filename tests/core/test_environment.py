"""What commands hand on in the environment."""

from __future__ import annotations

import os
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from emovllm.environment import ADMIN_KEY, reach_loopback_directly, without_admin_key


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    monkeypatch.setattr(os, "environ", kept)


class _Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hello)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_goes_past_every_proxy(host: str, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        os.environ[name] = "http://127.0.0.1:9"
    monkeypatch.setattr(urllib.request, "_opener", None)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{host}:{port}")
    reach_loopback_directly()
    assert httpx.get(f"http://{host}:{port}").text == "hello"
    assert urllib.request.urlopen(f"http://{host}:{port}").read() == b"hello"


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_hosts_that_are_excepted_stay_excepted(name: str) -> None:
    os.environ[name] = "example.org, 10.0.0.1"
    reach_loopback_directly()
    reach_loopback_directly()
    hosts = os.environ["no_proxy"].split(",")
    assert {"example.org", "10.0.0.1", "127.0.0.1", "localhost"} < set(hosts)
    assert len(set(hosts)) == len(hosts)
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]


def test_a_star_excepts_all_and_is_kept() -> None:
    os.environ["no_proxy"] = "*"
    reach_loopback_directly()
    assert os.environ["no_proxy"] == "*"


def test_a_servers_admin_key_is_not_handed_to_a_server_of_our_own() -> None:
    os.environ[ADMIN_KEY] = "exported"
    assert without_admin_key() == {name: value for name, value in os.environ.items() if name != "EMOVLLM_ADMIN_KEY"}
