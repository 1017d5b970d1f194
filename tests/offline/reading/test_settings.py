from __future__ import annotations

from pathlib import Path

import pytest

from emovllm.cli import main


def test_a_mean_over_a_chat_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--chat", "--pooling", "mean"]
    assert main(["probe", "train", *words]) == 2
    assert "leave out --pooling" in capsys.readouterr().err
