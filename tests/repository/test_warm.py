"""Forks of the tests' warm process are to those who start them what processes of their own are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import warm

pytestmark = pytest.mark.engine

_SCRIPT = """
import json, os, signal, sys
ours = {"argv": sys.argv, "main": __name__, "path": sys.path[0], "folder": os.getcwd(), "stdin": sys.stdin.read(),
        "environment": {name: os.environ.get(name) for name in ("EMOVLLM_A", "HOME", "PYTEST_XDIST_WORKER")},
        "leader": os.getsid(0) == os.getpid(), "files": len(os.listdir("/proc/self/fd"))}
handlers = [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)]
print(json.dumps([ours, handlers, signal.getsignal(signal.SIGINT) is signal.SIG_IGN]))
print("vllm" in sys.modules, file=sys.stderr)
sys.exit(7)
"""


def script(folder: Path, code: str, patch: pytest.MonkeyPatch) -> list[str]:
    path = folder / "script.py"
    path.write_text(code)
    patch.setattr(warm, "_SCRIPTS", {str(path)})
    return [sys.executable, str(path), "an argument"]


def test_a_fork_has_what_a_process_of_its_own_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = script(tmp_path, _SCRIPT, monkeypatch)
    ended = [
        subprocess.run(
            command,
            input="said",
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "EMOVLLM_A": "b", **changes},
            start_new_session=True,
        )
        for changes in ({}, warm.COLD)
    ]
    assert [each.stderr for each in ended] == ["True\n", "False\n"]
    assert [each.returncode for each in ended] == [7, 7]
    fork, process = [json.loads(each.stdout) for each in ended]
    assert fork == process


@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_fork_ends_by_a_signal(send: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = script(tmp_path, "import time; print('there', flush=True); time.sleep(600)", monkeypatch)
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        send(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    assert not Path(f"/proc/{process.pid}").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("TRITON_INTERPRET", "1"), ("PYTHONPATH", "{folder}"), ("OMP_NUM_THREADS", "2")]
)
def test_what_imports_may_read_is_for_a_process_of_its_own(name: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").touch()  # is run as Python starts
    command = [sys.executable, "-m", "emovllm.cli", "serve"]
    assert warm._is_warm(command, {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"})
    assert not warm._is_warm(command, {**os.environ, name: value.format(folder=tmp_path)})
