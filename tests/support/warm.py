"""Commands and engines of tests as forks of one process that has imported vLLM, which spares each the ten seconds.

`python warm.py ADDRESS LIFE READY` is that process, the parent: it closes READY once it listens, imports with its first
request, and ends once LIFE does (both are descriptors of pipes). Every request is a connection to ADDRESS, answered by
a process that waits for the fork: its pid, and how it ended. The fork takes over the command's arguments, environment,
folder, session and standard streams, and runs its program as Python does. `Popen` stands for subprocess's, in tests and
in what they start: it asks the parent where a command is one of ours, and starts a process like any other where the
environment differs in what may be read while modules are imported.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

# In the environment of a command that is to be a process like any other, as users start it.
COLD = {"EMOVLLM_TESTS_COLD": "1"}
_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
_BIN = Path(sys.executable).parent
_COMMANDS = {"serve", "run-batch", "verify", "bench", "evaluate", "own-replies"}
_PROGRAMS = {
    "benchmarks.gpu",
    "benchmarks.gpu.kernels_process",
    "benchmarks.gpu.machine",
    "benchmarks.gpu.shapes",
    "emovllm.cli",
    "emovllm_server.bench.engine_process",
    "emovllm_server.verify.engine_process",
}
# These need no vLLM: not worth its imports where nothing else of a run does.
_PROGRAMS_OF_FORKS = {"emovllm_offline.model.timing_process", "emovllm_offline.model.reference_process"}
_SCRIPTS = {str(Path(__file__).with_name(name)) for name in ("worker.py", "async_worker.py")}
# Read when they are needed, or set by the very imports; all other variables must be those of the parent.
_LATE = (
    *("VLLM_", "EMOVLLM_", "PYTEST_", "TORCHINDUCTOR_CACHE_DIR", "NO_PROXY", "no_proxy", "COLUMNS"),
    *("PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_COMPILE_THREADS", "TRITON_CACHE_AUTOTUNING", "TILELANG_"),
    *("KMP_", "LD_LIBRARY_PATH", "AITER_"),
)
_EARLY = ("VLLM_LOGGING", "VLLM_CONFIGURE_LOGGING", "VLLM_TARGET_DEVICE", "VLLM_BATCH_INVARIANT", "VLLM_CONFIG_ROOT")
_MODULES = (
    "cyclopts",
    "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.openai.run_batch",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.llm",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.coordinator",
    "vllm.v1.engine.core",
    "vllm.v1.engine.utils",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.models.llama",
    "transformers.models.llama.modeling_llama",
    "torch._dynamo",
    "torch._inductor.compile_fx",
)
_LENGTH = struct.Struct("!I")
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
        }
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(f"\0{_address}")
        message = json.dumps(request).encode()
        socket.send_fds(self._line, [_LENGTH.pack(len(message))], streams)
        self._line.sendall(message)
        (self.pid,) = _LENGTH.unpack(_read(self._line, _LENGTH.size))
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._line is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc, no-any-return]
        if wait_flags & os.WNOHANG and not _readable(self._line):
            return 0, 0
        (status,) = _LENGTH.unpack(_read(self._line, _LENGTH.size))
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
            [sys.executable, __file__, address, str(life), str(told)],
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
        ours = words[0] == sys.executable and (
            (words[1:2] == ["-m"] and words[2] in _PROGRAMS) or (words[1] in _SCRIPTS and len(words) == 3)
        )
    return ours and _early(environment) == _early(_environment)


def _early(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_EARLY) or not name.startswith(_LATE)}


def _readable(line: socket.socket) -> bool:
    poll = select.poll()
    poll.register(line, select.POLLIN)
    return bool(poll.poll(0))


def _read(line: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = line.recv(size - len(parts))
        if not part:
            raise RuntimeError(f"the process that tests fork ended; see {_LOG}")
        parts += part
    return parts


def _serve(address: str, life: int, told: int) -> dict[str, Any]:
    """Forks for each request. Returns in the forks alone, with their requests."""
    before = dict(os.environ)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{address}")
    listener.listen(64)
    os.close(told)
    poll = select.poll()
    poll.register(life, select.POLLIN)
    poll.register(listener, select.POLLIN)
    imported = False
    while not any(file == life for file, _ in poll.poll()):
        line, _ = listener.accept()
        length, streams, _, _ = socket.recv_fds(line, _LENGTH.size, 3)
        request: dict[str, Any] = json.loads(_read(line, *_LENGTH.unpack(length)))
        if not imported:
            _import()
            imported = True
        if os.fork() == 0:
            os.close(life)
            listener.close()
            _wait_for_fork(line, streams)
            request["streams"] = streams
            request["changes"] = {name: value for name, value in os.environ.items() if before.get(name) != value}
            return request
        for descriptor in (line.detach(), *streams):
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    os._exit(0)


def _import() -> None:
    import setproctitle
    from worker import freeze_imports

    for module in _MODULES:
        importlib.import_module(module)
    # Looks for where the title lies, which it no longer finds in another environment.
    setproctitle.getproctitle()
    assert len(os.listdir("/proc/self/task")) == 1, threading.enumerate()
    freeze_imports()


def _wait_for_fork(line: socket.socket, streams: list[int]) -> None:
    """Returns in another fork; in this one it tells its pid, and how it ended."""
    os.setsid()
    pid = os.fork()
    if pid == 0:
        line.close()
        return
    try:
        for stream in streams:
            os.close(stream)
        line.sendall(_LENGTH.pack(pid))
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        line.sendall(_LENGTH.pack(ended.si_status << 8 if ended.si_code == os.CLD_EXITED else ended.si_status))
        line.recv(1)
        os.waitpid(pid, 0)
    finally:
        os._exit(0)


def _become(address: str, request: dict[str, Any]) -> None:
    """Takes over what a new process gets from the one that starts it."""
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    for number, stream in enumerate(request["streams"]):
        os.dup2(stream, number)
        os.close(stream)
    _PROGRAMS.update(_PROGRAMS_OF_FORKS)
    parents = dict(os.environ)
    os.environ.clear()
    os.environ.update(request["changes"] | request["environment"])
    install(address, {name: value for name, value in parents.items() if name not in request["changes"]})
    from vllm.model_executor.models import registry
    from worker import fork_processes

    # vLLM looks at each class of model in a process of its own, which imports everything again.
    registry._run_in_subprocess = lambda inspect: inspect()
    if _METHOD not in request["environment"]:
        fork_processes()
        # A signal that an engine gets is not one for the event loop of the server that it is a copy of.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def _run(command: list[str]) -> None:
    if command[1:2] == ["-m"]:
        sys.argv = command[2:]
        sys.path[0] = ""
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command[1:] if command[0] == sys.executable else command
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    asked = _serve(sys.argv[1], *map(int, sys.argv[2:]))
    _become(sys.argv[1], asked)
    _run(asked["command"])
