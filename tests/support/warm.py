"""Commands and engines of tests as forks of one process that has imported vLLM, which spares each the ten seconds.

`Popen` stands for subprocess's, in tests and in what they start: it asks that process, the parent (forks.py), where a
command is one of ours, and starts a process like any other where the environment differs in what may be read while
modules are imported.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# In the environment of a command that is to be a process like any other, as users start it.
COLD = {"EMOVLLM_TESTS_COLD": "1"}
_BIN = Path(sys.executable).parent
_COMMANDS = {"serve", "run-batch", "verify", "bench", "evaluate", "own-replies"}
PROGRAMS = {
    "benchmarks.gpu",
    "benchmarks.gpu.kernels_process",
    "benchmarks.gpu.machine",
    "benchmarks.gpu.shapes",
    "emovllm.cli",
    "emovllm_server.bench.engine_process",
    "emovllm_server.verify.engine_process",
}
# These need no vLLM: not worth its imports where nothing else of a run does.
PROGRAMS_OF_FORKS = {"emovllm_offline.model.timing_process", "emovllm_offline.model.reference_process"}
_SCRIPTS = {str(Path(__file__).with_name(name)) for name in ("worker.py", "async_worker.py", "meta_sites.py")}
# Read when they are needed, or set by the very imports; all other variables must be those of the parent.
_LATE = (
    *("VLLM_", "EMOVLLM_", "PYTEST_", "TORCHINDUCTOR_CACHE_DIR", "NO_PROXY", "no_proxy", "COLUMNS"),
    *("PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_COMPILE_THREADS", "TRITON_CACHE_AUTOTUNING", "TILELANG_"),
    *("KMP_", "LD_LIBRARY_PATH", "AITER_", "PYTHONPATH"),
)
_EARLY = ("VLLM_LOGGING", "VLLM_CONFIGURE_LOGGING", "VLLM_TARGET_DEVICE", "VLLM_BATCH_INVARIANT", "VLLM_CONFIG_ROOT")
_PARENT = str(Path(__file__).with_name("forks.py"))
LENGTH = struct.Struct("!I")
_LOG = Path(tempfile.gettempdir()) / f"emovllm-tests-{os.getuid()}-warm.log"
_address = ""
_environment: dict[str, str] = {}


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """A process that may be a fork of the parent; how it ended is then read from `_line`."""

    _line: socket.socket | None = None

    def _execute_child(self, args: Any, *rest: Any) -> None:
        # As subprocess passes them: executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags,
        # shell, three pairs of pipes, restore_signals, gid, gids, uid, umask, start_new_session, process_group.
        executable, preexec_fn, _, pass_fds, cwd, env, _, _, shell = rest[:9]
        pipes, session = rest[9:15], rest[20]
        environment = dict(os.environ if env is None else env)
        if executable or preexec_fn or pass_fds or shell or not _is_warm(args, environment):
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        streams = [given if given >= 0 else number for number, given in enumerate((pipes[0], pipes[3], pipes[5]))]
        request = {
            "command": [os.fspath(word) for word in args],
            "environment": environment,
            "folder": os.fspath(cwd or Path.cwd()),
            "session": session,
            "uninterrupted": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        }
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(f"\0{_address}")
        message = json.dumps(request).encode()
        socket.send_fds(self._line, [LENGTH.pack(len(message))], streams)
        self._line.sendall(message)
        (self.pid,) = LENGTH.unpack(read(self._line, LENGTH.size))
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._line is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc, no-any-return]
        if wait_flags & os.WNOHANG and not _readable(self._line):
            return 0, 0
        (status,) = LENGTH.unpack(read(self._line, LENGTH.size))
        # The pid is this process's alone until now, and nobody's once the line has ended.
        self._line.shutdown(socket.SHUT_WR)
        self._line.recv(1)
        self._line.close()
        return self.pid, status

    def _internal_poll(self, *args: Any, **options: Any) -> int | None:
        if self._line is None:
            return super()._internal_poll(*args, **options)  # type: ignore[misc, no-any-return]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                pid, status = (0, 0) if self.returncode is not None else self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def start() -> str:
    """Starts the parent, which ends with this process. Returns: its address."""
    life, _ = os.pipe()
    ready, told = os.pipe()
    address = f"emovllm-tests-{os.getpid()}"
    with _LOG.open("w") as log:
        subprocess.Popen(
            [sys.executable, _PARENT, address, str(life), str(told)],
            env={name: value for name, value in os.environ.items() if not name.startswith("VLLM_")},
            pass_fds=[life, told],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    os.close(life)
    os.close(told)
    os.read(ready, 1)
    os.close(ready)
    return address


def install(address: str, environment: dict[str, str]) -> None:
    """Has this process, and what it forks, ask the parent at `address`, which began with this environment."""
    global _address
    _address = address
    _environment.update(environment)
    subprocess.Popen = Popen  # type: ignore[misc]


def _is_warm(args: Any, environment: dict[str, str]) -> bool:
    if isinstance(args, str | bytes | os.PathLike) or COLD.keys() & environment.keys():
        return False
    words = [os.fspath(word) for word in args]
    if words[0] == str(_BIN / "emovllm"):
        ours = words[1:2] != [] and words[1] in _COMMANDS and not {"-h", "--help"} & {*words}
    else:
        ours = words[0] == sys.executable and ((words[1:2] == ["-m"] and words[2] in PROGRAMS) or words[1] in _SCRIPTS)
    customized = any(Path(folder, "sitecustomize.py").exists() for folder in added(environment))
    return ours and not customized and _early(environment) == _early(_environment)


def added(environment: dict[str, str]) -> list[str]:
    """The folders of modules that the parent does not have."""
    folders, parents = [each.get("PYTHONPATH", "").split(os.pathsep) for each in (environment, _environment)]
    return [folder for folder in folders if folder and folder not in parents]


def _early(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_EARLY) or not name.startswith(_LATE)}


def _readable(line: socket.socket) -> bool:
    poll = select.poll()
    poll.register(line, select.POLLIN)
    return bool(poll.poll(0))


def read(line: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = line.recv(size - len(parts))
        if not part:
            raise RuntimeError(f"the process that tests fork ended; see {_LOG}")
        parts += part
    return parts
