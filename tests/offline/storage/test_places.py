"""Where work lies: beside the circuit, whatever way it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from emovllm_offline.storage.places import calibration_folder, work_folder


def test_work_lies_beside_the_circuit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "circuit").mkdir()
    expected = tmp_path.resolve() / "circuit.work"
    assert work_folder(tmp_path / "circuit") == expected
    assert work_folder(f"{tmp_path}/circuit/") == expected
    monkeypatch.chdir(tmp_path / "circuit")
    assert work_folder(".") == expected
    assert calibration_folder(".") == expected / "calibration"
