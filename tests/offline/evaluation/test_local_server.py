"""The server that an evaluation starts for itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from emovllm_offline.evaluation import local_server as module
from emovllm_offline.evaluation.local_server import local_server


class _Started(Exception):
    pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a server is started with; it does not start."""
    started: dict[str, Any] = {}

    def start(command: list[str], **options: Any) -> None:
        started.update(options, command=command)
        raise _Started

    monkeypatch.setattr(module.subprocess, "Popen", start)
    return started


def test_what_was_exported_for_another_server_does_not_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: dict[str, Any]
) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "EMOVLLM_ADMIN_KEY": "exported", "VLLM_API_KEY": "exported"})
    with pytest.raises(_Started), local_server("m", "c", tmp_path / "log", steering=False, concurrency=1):
        pass
    environment = started["env"]
    assert "EMOVLLM_ADMIN_KEY" not in environment
    assert environment["VLLM_API_KEY"] != "exported"
    assert environment["PATH"] == os.environ["PATH"]
    assert "127.0.0.1" in environment["no_proxy"]


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("given", [(), ("--dtype", "bfloat16"), ("--dtype=bfloat16",)])
def test_models_are_served_in_float32_where_bfloat16_is_slow_and_nothing_else_was_asked_for(
    slow: bool, given: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: dict[str, Any]
) -> None:
    monkeypatch.setattr(module.cpu, "slow_in_bfloat16", lambda: slow)
    log = tmp_path / "log"
    with pytest.raises(_Started), local_server("m", "c", log, steering=False, concurrency=1, engine_args=given):
        pass
    assert ("float32" in started["command"]) == (slow and not given)
    assert [argument for argument in started["command"] if "bfloat16" in argument] == list(given)[-1:]
