"""Rows of numbers: appended, a torn last one cut, read from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emovllm_offline.storage.rows import Rows

VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_rows_round_trip_and_go_on(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.f32", 3)
    assert rows.count == 0
    rows.append(VALUES[0])
    rows.append(VALUES[1])
    rows = Rows(tmp_path / "rows.f32", 3)
    assert rows.count == 2
    rows.append(VALUES[2])
    assert np.array_equal(rows.read(), VALUES[:3])


@pytest.mark.parametrize("cut", [1, 4, 11])
def test_a_torn_last_row_is_cut_and_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.f32"
    path.write_bytes(VALUES.tobytes()[:-cut])
    rows = Rows(path, 3)
    assert rows.count == 3
    rows.append(VALUES[3])
    assert np.array_equal(rows.read(), VALUES)


def test_rows_are_kept_up_to_a_count(tmp_path: Path) -> None:
    path = tmp_path / "rows.f32"
    path.write_bytes(VALUES.tobytes())
    Rows(path, 3).keep(2)
    assert np.array_equal(Rows(path, 3).read(), VALUES[:2])
