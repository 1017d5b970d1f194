"""How the page is served, without a browser."""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import emovllm_server
from emovllm_server.api.routes import EmotionRoutes
from emovllm_server.arguments import parse
from emovllm_server.batch.engine import vllm_server
from emovllm_server.playground import page
from support import chromium

STATIC = Path(page.__file__).parent / "static"
ROOT = Path(__file__).parents[3]


def get(app: Any, path: str) -> httpx.Response:
    async def asking() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(asking())


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    EmotionRoutes().attach_router(app)
    app.state.emotion_playground = True
    return app


@pytest.fixture(scope="module")
def guarded() -> Any:
    """vLLM's application with a key, as a server builds it, without an engine behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_PLUGINS", "emovllm")
        _, args = parse(["--api-key", "secret"], "serve")
        return vllm_server().build_app(args, ("generate",), None)


@pytest.mark.parametrize("path", ["/playground", "/playground/", "/playground/app.js", "/playground/vendor/preact.js"])
def test_nothing_is_there_unless_it_was_asked_for(app: FastAPI, path: str) -> None:
    app.state.emotion_playground = False
    refused = get(app, path)
    assert refused.status_code == 404
    del app.state.emotion_playground
    assert get(app, path).content == refused.content == get(app, "/nowhere").content


def test_the_page_is_open_and_what_it_asks_is_behind_the_key(guarded: Any) -> None:
    assert get(guarded, "/playground").status_code == 404
    guarded.state.emotion_playground = True
    try:
        assert get(guarded, "/playground").status_code == 200
        asked = re.findall(r'"(v1/[a-z/]+)"', (STATIC / "server.js").read_text())
        assert set(asked) == {"v1/models", "v1/emotions", "v1/chat/completions"}
        assert [get(guarded, f"/{path}").status_code for path in asked] == [401] * len(asked)
    finally:
        guarded.state.emotion_playground = False


@pytest.mark.parametrize("name", page.FILES)
def test_each_file_is_served_as_what_it_is_and_allows_nothing_of_others(app: FastAPI, name: str) -> None:
    answer = get(app, f"/playground/{name}")
    assert answer.status_code == 200
    assert answer.content == (STATIC / name).read_bytes()
    assert answer.headers["content-type"] == page.FILES[name]
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["../page.py", "%2e%2e/page.py", "nothing.js", "vendor", "app.js/", "//etc"])
def test_what_is_no_file_of_the_page_is_not_found(app: FastAPI, name: str) -> None:
    assert get(app, f"/playground/{name}").status_code == 404


def test_it_works_below_any_prefix_of_a_proxy(app: FastAPI) -> None:
    sent = get(app, "/playground/")
    assert (sent.status_code, sent.headers["location"]) == (307, "../playground")
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.content(page.INDEX).decode())
    assert {name.removeprefix("playground/") for name in addresses} == {"app.js", "style.css", "icon.svg"}


def test_all_files_are_listed_and_in_the_wheel() -> None:
    assert {str(path.relative_to(STATIC)) for path in STATIC.rglob("*") if path.is_file()} == set(page.FILES)
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    # hatchling takes every file of a listed package that git does not ignore.
    assert not {"include", "exclude", "only-include"} & set(targets["wheel"])
    package = Path(emovllm_server.__file__).parent
    assert str(package.relative_to(ROOT)) in targets["wheel"]["packages"]
    assert STATIC.is_relative_to(package)
    if (ROOT / ".git").exists():
        ignored = ["git", "check-ignore", *map(str, STATIC.rglob("*"))]
        assert subprocess.run(ignored, cwd=ROOT, capture_output=True, text=True, check=False).stdout == ""


def test_the_pages_own_code_stays_small() -> None:
    own = [name for name in page.FILES if "/" not in name]
    lines = [line for name in own for line in (STATIC / name).read_text().splitlines()]
    assert 500 < len(lines) < 1500
    # Nor is it small by its lines' length.
    assert sum(map(len, lines)) / len(lines) < 70


def test_files_of_others_are_what_their_notice_says() -> None:
    notice = (STATIC / "vendor/NOTICE").read_text()
    sums = dict(reversed(line.split()) for line in notice.splitlines() if re.match(r"[0-9a-f]{64} ", line))  # type: ignore[misc]
    assert set(sums) == {path.name for path in (STATIC / "vendor").iterdir()} - {"NOTICE"}
    for name, digest in sums.items():
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == digest, name


def test_no_script_makes_html_of_a_text_or_runs_one() -> None:
    forbidden = re.compile(
        r"(?:inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc|\son\w+=\""
    )
    own = [path for path in STATIC.iterdir() if path.suffix in (".js", ".html")]
    assert len(own) > 5
    assert [(path.name, found) for path in own if (found := forbidden.findall(path.read_text()))] == []


@pytest.mark.parametrize("command", ["run-batch", "verify"])
@pytest.mark.parametrize("in_file", [False, True])
def test_a_command_that_nobody_chats_with_refuses_the_option(
    command: str, in_file: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("playground: true\n")
    with pytest.raises(SystemExit) as ended:
        parse(["some/model", *(["--config", str(path)] if in_file else ["--playground"])], command)
    assert ended.value.code == 2
    assert "unrecognized arguments: --playground" in capsys.readouterr().err


def test_a_machine_without_a_browser_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMOVLLM_CHROMIUM", raising=False)
    monkeypatch.setattr(chromium, "shutil", SimpleNamespace(which=lambda name: None))
    with pytest.raises(RuntimeError, match="apt-get install chromium"):
        chromium.executable()
