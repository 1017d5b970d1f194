"""Other ways to start a server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.bodies import body
from support.servers import BIN, Server

pytestmark = pytest.mark.engine


def test_plain_vllm_serves_a_circuit_that_its_configuration_names(
    serve: Callable[..., Server], default_model: str, strong_circuit: Path
) -> None:
    config = {"emovllm": {"circuit": str(strong_circuit)}}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", default_model]
    command += ["--served-model-name", "SmolLM2-135M-Instruct", "--enforce-eager", "--max-model-len", "512"]
    server = serve([*command, "--additional-config", json.dumps(config)]).wait()
    route = "/v1/completions"

    def text(**fields: Any) -> str:
        reply = httpx.post(f"{server.url}{route}", json=body(route, **fields), timeout=60)
        assert reply.status_code == 200
        return str(reply.json()["choices"][0]["text"])

    assert text() != text(emotion="anger")
    refused = httpx.post(f"{server.url}{route}", json=body(route, emotion="joyful"), timeout=60)
    assert refused.status_code == 400
    # Our routes are there without VLLM_PLUGINS naming them, and so is what refuses an emotion elsewhere.
    assert httpx.get(f"{server.url}/v1/emotions", timeout=60).status_code == 200
    tokenize = {"model": "SmolLM2-135M-Instruct", "prompt": "Hello"}
    assert httpx.post(f"{server.url}/tokenize", json=tokenize, timeout=60).status_code == 200
    assert httpx.post(f"{server.url}/tokenize", json={**tokenize, "emotion": "anger"}, timeout=60).status_code == 400
    server.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--circuit", "no/such"], "emovllm serve: no/such: "),
        (["some/model"], "emovllm serve: no circuit for some/model: give --circuit"),
    ],
)
def test_a_start_that_cannot_work_is_refused_in_a_line(arguments: list[str], message: str) -> None:
    result = subprocess.run(
        [str(BIN / "emovllm"), "serve", *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
