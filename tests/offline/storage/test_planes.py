from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emovllm.errors import CheckpointError
from emovllm_offline.storage.planes import Planes

VALUES = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3)
MADE_OF = {"model": "one", "sizes": (1, 2)}


def planes(folder: Path, **other: object) -> Planes:
    return Planes(folder / "work" / "values.f32", VALUES.shape, {**MADE_OF, **other}, seconds=0)


def test_rows_that_come_a_few_at_a_time_are_read_a_plane_at_a_time(tmp_path: Path) -> None:
    with planes(tmp_path) as rows:
        rows.append(VALUES[:, :2])
        rows.append(VALUES[:, 2:])
        assert np.array_equal(rows.plane(0), VALUES[0])
        assert np.array_equal(rows.plane(1), VALUES[1])
    with planes(tmp_path) as rows:
        assert rows.done == 5
        assert np.array_equal(rows.plane(1), VALUES[1])


def test_what_was_not_flushed_is_written_again(tmp_path: Path) -> None:
    with planes(tmp_path) as rows:
        rows.append(VALUES[:, :2])
        rows._seconds = 1e9
        rows.append(VALUES[:, 2:4])
    with planes(tmp_path) as rows:
        assert rows.done == 2
        rows.append(VALUES[:, 2:])
        assert np.array_equal(np.stack([rows.plane(0), rows.plane(1)]), VALUES)


def test_rows_made_of_something_else_are_refused_by_its_name(tmp_path: Path) -> None:
    with planes(tmp_path) as rows:
        rows.append(VALUES[:, :2])
    with pytest.raises(CheckpointError, match=r"other settings: model;.*--fresh"):
        planes(tmp_path, model="other")


def test_a_file_that_was_cut_short_is_told(tmp_path: Path) -> None:
    with planes(tmp_path) as rows:
        rows.append(VALUES)
        rows.path.write_bytes(rows.path.read_bytes()[:-4])
        with pytest.raises(CheckpointError, match="cut short"):
            rows.plane(1)


def test_a_plane_is_not_read_before_it_is_whole_nor_filled_beyond_its_size(tmp_path: Path) -> None:
    with planes(tmp_path) as rows:
        rows.append(VALUES[:, :2])
        with pytest.raises(ValueError, match="2 of 5 rows"):
            rows.plane(0)
        with pytest.raises(ValueError, match="after 2"):
            rows.append(VALUES[:, :4])
