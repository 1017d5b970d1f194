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


def test_what_was_exported_for_another_server_does_not_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Any] = {}

    def start(command: list[str], **options: Any) -> None:
        started.update(options)
        raise _Started

    monkeypatch.setattr(os, "environ", {**os.environ, "EMOVLLM_ADMIN_KEY": "exported", "VLLM_API_KEY": "exported"})
    monkeypatch.setattr(module.subprocess, "Popen", start)
    with pytest.raises(_Started), local_server("m", "c", tmp_path / "log", steering=False, concurrency=1):
        pass
    environment = started["env"]
    assert "EMOVLLM_ADMIN_KEY" not in environment
    assert environment["VLLM_API_KEY"] != "exported"
    assert environment["PATH"] == os.environ["PATH"]
    assert "127.0.0.1" in environment["no_proxy"]
