from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.built import Place
from support.evaluated import READING, serve_by
from support.stub import Stub


@pytest.fixture
def place(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    serve_by(stub, monkeypatch)
    # The stub reads as it is told, with no probe.
    monkeypatch.setattr("emovllm_offline.evaluation.evaluate.find_reading", lambda where, target: _reading(where))
    return Place(tmp_path)


def _reading(where: Any) -> Any:
    return READING if where.readout else None
