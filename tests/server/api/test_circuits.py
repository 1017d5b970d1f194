"""A server of two circuits, with an operator's limits, that loads a third while it runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from emovllm_server.serve import shipped_circuits
from support.bodies import body
from support.circuits import SIX, random_circuit
from support.servers import BIN, Server

pytestmark = pytest.mark.engine

MODEL = "SmolLM2-135M-Instruct"
ROUTE = "/v1/completions"
KEY = {"authorization": "Bearer client-key"}
ADMIN = {**KEY, "x-emovllm-admin-key": "admin-key"}


@pytest.fixture(scope="module")
def root(default_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    random_circuit(default_model, root / "late", names=("awe", "joy"), seed=5)
    (root / "broken").mkdir()
    shutil.copy(root / "late" / "circuit.json", root / "broken")
    (root / "way-out").symlink_to(shipped_circuits())
    return root


@pytest.fixture(scope="module")
def several(serve: Callable[..., Server], strong_circuit: Path, root: Path) -> Iterator[Server]:
    command = [str(BIN / "emovllm"), "serve", "--enforce-eager", "--max-model-len", "512", "--dtype", "float32"]
    command += ["--circuit", f"main={shipped_circuits() / MODEL}", "--circuit", f"strong={strong_circuit}"]
    command += [
        "--api-key",
        "client-key",
        "--max-strength",
        "1.1",
        "--default-emotion",
        "main/sadness",
        "--emotion-capacity",
        "14",
    ]
    # In the environment, as an operator would: other users of the machine see command lines.
    server = serve([*command, "--circuit-root", str(root)], env={"EMOVLLM_ADMIN_KEY": "admin-key"}).wait()
    yield server
    server.close()


def ask(server: Server, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{ROUTE}", json=body(ROUTE, **fields), headers=KEY, timeout=120)


def text(server: Server, **fields: Any) -> str:
    reply = ask(server, **fields)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["text"])


def error(reply: httpx.Response) -> str:
    return str(reply.json()["error"]["message"])


def admin(server: Server, method: str, suffix: str = "", headers: dict[str, str] | None = None, **body: Any) -> Any:
    url = f"{server.url}/v1/emotions/circuits{suffix}"
    return httpx.request(method, url, headers=ADMIN if headers is None else headers, json=body or None, timeout=120)


def test_each_circuit_has_its_own_emotions(several: Server) -> None:
    assert text(several, emotion="main/anger") != text(several, emotion="strong/anger")
    ambiguous = ask(several, emotion="anger")
    assert ambiguous.status_code == 400
    assert "choose one of main/anger, strong/anger" in error(ambiguous)
    named = ask(several, model=f"{MODEL}:strong/anger", emotion_strength=0.9).json()
    assert named["emotion"]["circuit"]["name"] == "strong"
    assert named["choices"] == ask(several, emotion="strong/anger", emotion_strength=0.9).json()["choices"]
    listed = httpx.get(f"{several.url}/v1/emotions", headers=KEY).json()
    names = [f"main/{name}" for name in SIX] + [f"strong/{name}" for name in SIX]
    assert [emotion["id"] for emotion in listed["data"]] == names
    assert {emotion["max_strength"] for emotion in listed["data"]} == {1.1}
    models = httpx.get(f"{several.url}/v1/models", headers=KEY).json()
    assert [model["id"] for model in models["data"]] == [MODEL, *(f"{MODEL}:{name}" for name in names)]


def test_the_operators_limits_hold(several: Server) -> None:
    over = ask(several, emotion="main/fear", emotion_strength=1.3)
    assert over.status_code == 400
    assert "over this server's maximum of 1.1" in error(over)
    plain, default = ask(several, emotion="none"), ask(several)
    assert plain.headers["x-emotion"] == "none"
    assert default.json()["emotion"]["mix"] == {"sadness": 1.0}
    assert default.json()["choices"] == ask(several, emotion="main/sadness").json()["choices"]
    assert default.json()["choices"] != plain.json()["choices"]
    # Routes that know no emotion have the default all the same.
    question: dict[str, Any] = {"model": MODEL, "max_tokens": 12, "temperature": 0}
    question["messages"] = [{"role": "user", "content": "My bus was late."}]
    chat = httpx.post(f"{several.url}/v1/chat/completions", json=question, headers=KEY, timeout=60).json()
    message = httpx.post(f"{several.url}/v1/messages", json=question, headers=KEY, timeout=60).json()
    assert message["content"][0]["text"] == chat["choices"][0]["message"]["content"]


def test_circuits_are_closed_without_the_keys(several: Server) -> None:
    asked = {"name": "late", "path": "late"}
    for headers, status in (
        ({}, 401),
        (KEY, 401),
        ({"x-emovllm-admin-key": "admin-key"}, 401),
        ({**KEY, "x-emovllm-admin-key": "client-key"}, 401),
        ({**KEY, "x-emovllm-admin-key": "\u00e4dmin".encode("latin-1").decode("latin-1")}, 401),
    ):
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        for method, path, json in (("GET", "", None), ("POST", "", asked), ("DELETE", "/main", None)):
            url = f"{several.url}/v1/emotions/circuits{path}"
            assert httpx.request(method, url, headers=encoded, json=json).status_code == status, (method, headers)


def test_a_circuit_comes_and_goes_under_traffic(several: Server) -> None:
    before = text(several, emotion="strong/fear", max_tokens=48)
    assert "unknown emotion 'awe'" in error(ask(several, emotion="awe"))
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(text, several, emotion="strong/fear", max_tokens=48) for _ in range(4)]
        loaded = admin(several, "POST", name="late", path="late")
        assert loaded.status_code == 200, loaded.text
        assert loaded.json()["emotions"] == ["awe", "joy"]
        assert {future.result() for future in running} == {before}
        awed = text(several, emotion="awe", max_tokens=48)
        assert awed not in (before, text(several, emotion="none", max_tokens=48))
        assert [circuit["id"] for circuit in admin(several, "GET").json()["data"]] == ["main", "strong", "late"]
        running = [pool.submit(text, several, emotion="awe", max_tokens=200) for _ in range(4)]
        while 'emovllm_running_requests{emotion="awe"} 4.0' not in httpx.get(f"{several.url}/metrics").text:
            assert not all(future.done() for future in running), "they ended before they were seen"
        gone = admin(several, "DELETE", "/late")
        assert gone.status_code == 200
        assert all(future.result().startswith(awed) for future in running)
    assert "unknown emotion 'awe'" in error(ask(several, emotion="awe"))
    assert admin(several, "DELETE", "/late").status_code == 404
    assert admin(several, "POST", name="late2", path="late").status_code == 200
    assert text(several, emotion="late2/awe", max_tokens=48) == awed
    assert admin(several, "DELETE", "/late2").status_code == 200


@pytest.mark.parametrize(
    ("name", "path", "status", "message"),
    [
        ("x", "..", 400, "no such folder"),
        ("x", "/", 400, "no such folder"),
        ("x", "", 400, "no such folder"),
        ("x", "late/../..", 400, "no such folder"),
        ("x", "way-out/SmolLM2-135M-Instruct", 400, "no such folder"),
        ("x", "late\0", 400, "no such folder"),
        ("x", "broken", 400, "circuit.safetensors"),
        ("main", "late", 409, "there already"),
        ("../x", "late", 400, "name: "),
    ],
)
def test_only_whole_circuits_below_the_root_are_loaded(
    several: Server, root: Path, name: str, path: str, status: int, message: str
) -> None:
    refused = admin(several, "POST", name=name, path=path)
    assert refused.status_code == status, refused.text
    assert message in error(refused)
    assert str(root) not in refused.text


def test_a_circuit_that_the_settings_name_stays(several: Server) -> None:
    refused = admin(several, "DELETE", "/main")
    assert refused.status_code == 409
    assert "default emotion" in error(refused)
    assert ask(several).json()["emotion"]["mix"] == {"sadness": 1.0}
