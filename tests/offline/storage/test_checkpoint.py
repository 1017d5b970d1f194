"""A checkpoint: steps that go on where they were, other inputs refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emovllm.errors import CheckpointError
from emovllm_offline.storage.checkpoint import UNSAVED, Arrays, Checkpoint

ITEMS = [0.1, 0.2, 0.3, 0.4, 0.5]


class Interrupted(Exception):
    pass


def add_up(checkpoint: Checkpoint, interrupt_at: float | None = None) -> tuple[np.ndarray, list[float]]:
    """The sum of the items, and those that it took steps for."""
    sums = Arrays(total=np.zeros(2))
    taken = []
    for item in checkpoint.steps(ITEMS, sums, "sums", unit="items", shown=False):
        if item == interrupt_at:
            sums["total"] += 100  # half a step's work, which must not be kept
            raise Interrupted
        sums["total"] += [item, item**2]
        taken.append(item)
    return sums["total"], taken


@pytest.mark.parametrize("at", range(5))
def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(tmp_path: Path, at: int) -> None:
    whole, _ = add_up(UNSAVED)
    path = tmp_path / "new" / "sums.safetensors"
    with pytest.raises(Interrupted):
        add_up(Checkpoint(path, {"seed": 0}, seconds=0), interrupt_at=ITEMS[at])
    total, taken = add_up(Checkpoint(path, {"seed": 0}))
    assert total.tobytes() == whole.tobytes()
    assert taken == ITEMS[at:]
    # What is finished takes no step.
    total, taken = add_up(Checkpoint(path, {"seed": 0}))
    assert total.tobytes() == whole.tobytes()
    assert taken == []


def test_the_state_is_there_before_the_first_step(tmp_path: Path) -> None:
    add_up(Checkpoint(tmp_path / "sums", {}))
    sums = Arrays(total=np.zeros(2))
    Checkpoint(tmp_path / "sums", {}).steps(ITEMS, sums, "sums", unit="items", shown=False)
    assert sums["total"][0] == pytest.approx(1.5)


def test_it_is_saved_now_and_then_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 10, 25, 25, 30, 31, 32, 32])
    monkeypatch.setattr("emovllm_offline.storage.checkpoint.time.monotonic", lambda: next(seconds))
    written = []
    monkeypatch.setattr(
        "emovllm_offline.storage.checkpoint.write_atomically", lambda path, data: written.append(len(data))
    )
    checkpoint = Checkpoint(tmp_path / "sums", {})
    for step in range(1, 5):
        checkpoint.save({"total": np.zeros(2)}, step)
    assert len(written) == 1
    checkpoint.save({"total": np.zeros(2)}, 5, always=True)
    assert len(written) == 2


def test_other_inputs_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "sums.safetensors"
    add_up(Checkpoint(path, {"seed": 0, "data": "a", "sizes": (1, 2)}))
    kept = path.read_bytes()
    with pytest.raises(
        CheckpointError, match=r"sums\.safetensors: made with other settings: data, seed; .* --fresh, or give another"
    ):
        add_up(Checkpoint(path, {"seed": 1, "data": "b", "sizes": (1, 2)}))
    assert path.read_bytes() == kept
    assert add_up(Checkpoint(path, {"sizes": (1, 2), "data": "a", "seed": 0}))[1] == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sums.safetensors"
    add_up(Checkpoint(path, {}))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=r"sums\.safetensors: damaged .* --fresh"):
        add_up(Checkpoint(path, {}))


def test_what_is_not_to_be_resumed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert add_up(UNSAVED)[1] == ITEMS
    assert list(tmp_path.iterdir()) == []
