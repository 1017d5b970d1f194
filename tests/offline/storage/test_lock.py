"""One process at a time works in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emovllm.errors import StoredError
from emovllm_offline.storage.checkpoint import Arrays, Checkpoint
from emovllm_offline.storage.journal import Journal
from emovllm_offline.storage.lock import forget, locked

ANOTHER = """
import sys
from pathlib import Path
from emovllm_offline.storage.lock import locked
lock = locked(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def another(tmp_path: Path):
    """A process that has the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", ANOTHER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def _journal(folder: Path, fresh: bool = False) -> Journal:
    return Journal(folder, {"n": 1}, name="run.json", files=("rows.jsonl",), remedy="give --fresh", fresh=fresh)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_that_another_process_is_at_is_left_alone(tmp_path: Path, another: subprocess.Popen, fresh: bool) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "run.json").write_text('{"n": 1}')
    with pytest.raises(StoredError, match="another process is at work there"):
        forget(tmp_path)
    with pytest.raises(StoredError, match=r"another process is at work there; wait for it, .*or give another folder"):
        _journal(tmp_path, fresh)
    assert (tmp_path / "rows.jsonl").read_text() == "{}\n"
    another.kill()
    another.wait()
    _journal(tmp_path, fresh)
    forget(tmp_path)
    assert not tmp_path.exists()


def test_steps_that_another_process_takes_are_left_alone(tmp_path: Path, another: subprocess.Popen) -> None:
    checkpoint = Checkpoint(tmp_path / "work.safetensors", {"n": 1})
    with pytest.raises(StoredError, match="another process is at work there"):
        checkpoint.steps([1, 2], Arrays(), "steps", unit="steps", shown=False)
    another.kill()
    another.wait()
    assert list(checkpoint.steps([1, 2], Arrays(), "steps", unit="steps", shown=False)) == [1, 2]
    again = Checkpoint(tmp_path / "work.safetensors", {"n": 1})
    assert list(again.steps([1, 2], Arrays(), "steps", unit="steps", shown=False)) == []


def test_a_process_may_take_up_its_own_run_again(tmp_path: Path) -> None:
    first, second = _journal(tmp_path), _journal(tmp_path)
    assert locked(tmp_path) is not None
    del first, second


def test_what_is_forked_does_not_hold_the_folder(tmp_path: Path) -> None:
    lock = locked(tmp_path)
    assert lock is not None
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(write)
            os.read(read, 1)
        finally:
            os._exit(0)
    os.close(read)
    try:
        del lock
        done = subprocess.run([sys.executable, "-c", ANOTHER, str(tmp_path)], input="", capture_output=True, text=True)
        assert done.stdout == "locked\n", done.stderr
    finally:
        os.close(write)
        os.waitpid(child, 0)
