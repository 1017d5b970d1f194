"""The process that tests fork (warm.py): `python forks.py ADDRESS LIFE READY`.

It closes READY once it listens, imports vLLM with its first request, and ends once LIFE does (both are descriptors of
pipes). Every request is a connection to ADDRESS, answered by a process that waits for the fork: its pid, and how it
ended. The fork takes over the command's arguments, environment, folder, session and standard streams, and runs its
program as Python does.
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
import sys
import threading
from pathlib import Path
from typing import Any

from warm import LENGTH, PROGRAMS, PROGRAMS_OF_FORKS, added, install, read
from worker import fork_processes, freeze_imports

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


def serve(address: str, life: int, told: int) -> dict[str, Any]:
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
        length, streams, _, _ = socket.recv_fds(line, LENGTH.size, 3)
        request: dict[str, Any] = json.loads(read(line, *LENGTH.unpack(length)))
        if not imported:
            import_all()
            imported = True
        if os.fork() == 0:
            os.close(life)
            listener.close()
            wait_for_fork(line, streams)
            request["streams"] = streams
            request["changes"] = {name: value for name, value in os.environ.items() if before.get(name) != value}
            return request
        for descriptor in (line.detach(), *streams):
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    os._exit(0)


def import_all() -> None:
    import setproctitle

    for module in _MODULES:
        importlib.import_module(module)
    # Looks for where the title lies, which it no longer finds in another environment.
    setproctitle.getproctitle()
    assert len(os.listdir("/proc/self/task")) == 1, threading.enumerate()
    freeze_imports()


def wait_for_fork(line: socket.socket, streams: list[int]) -> None:
    """Returns in another fork; in this one it tells its pid, and how it ended."""
    os.setsid()
    pid = os.fork()
    if pid == 0:
        line.close()
        return
    try:
        for stream in streams:
            os.close(stream)
        line.sendall(LENGTH.pack(pid))
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        line.sendall(LENGTH.pack(ended.si_status << 8 if ended.si_code == os.CLD_EXITED else ended.si_status))
        line.recv(1)
        os.waitpid(pid, 0)
    finally:
        os._exit(0)


def become(address: str, request: dict[str, Any]) -> None:
    """Takes over what a new process gets from the one that starts it."""
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    for number, stream in enumerate(request["streams"]):
        os.dup2(stream, number)
        os.close(stream)
    # The parent has what the run of tests was started with; a process gets that of who starts it.
    signal.signal(signal.SIGINT, signal.SIG_IGN if request["uninterrupted"] else signal.default_int_handler)
    PROGRAMS.update(PROGRAMS_OF_FORKS)
    parents = dict(os.environ)
    os.environ.clear()
    os.environ.update(request["changes"] | request["environment"])
    install(address, {name: value for name, value in parents.items() if name not in request["changes"]})
    sys.path[1:1] = added(request["environment"])
    from vllm.model_executor.models import registry

    # vLLM looks at each class of model in a process of its own, which imports everything again.
    registry._run_in_subprocess = lambda inspect: inspect()
    fork_processes()
    # A signal that an engine gets is not one for the event loop of the server that it is a copy of.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def run(command: list[str]) -> None:
    if command[1:2] == ["-m"]:
        sys.argv = command[2:]
        sys.path[0] = ""
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command[1:] if command[0] == sys.executable else command
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    asked = serve(sys.argv[1], *map(int, sys.argv[2:]))
    become(sys.argv[1], asked)
    run(asked["command"])
