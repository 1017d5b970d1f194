"""An interpreter that has vLLM and Transformers imported already: `python -m support.forking SOCKET` is its server.

What stands in for `sys.executable` is a script that asks the server for a copy of itself, with its own standard files,
arguments and environment. The copy ends with the script, and the script with the copy.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

_CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
request = json.dumps({{"words": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}}).encode()
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
signal.signal(signal.SIGTERM, lambda *_: server.sendall(b"t"))
status = server.recv(1)
os._exit(status[0] if status else 137)
"""


class Interpreter:
    """path: takes the place of Python's, for `python -m MODULE ...`."""

    def __init__(self) -> None:
        # A short name: those of sockets are limited.
        self._folder = Path(tempfile.mkdtemp(prefix="fork-"))
        address, self.path = str(self._folder / "socket"), str(self._folder / "python")
        Path(self.path).write_text(_CLIENT.format(python=sys.executable, path=address))
        Path(self.path).chmod(0o755)
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        self._server = subprocess.Popen(
            [sys.executable, "-m", "support.forking", address, self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert self._server.stdout is not None
        self._server.stdout.readline()

    def close(self) -> None:
        """Idempotent."""
        self._server.kill()
        self._server.wait()
        for pipe in (self._server.stdin, self._server.stdout):
            assert pipe is not None
            pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def main(address: str, path: str) -> None:
    preload()
    sys.executable = path
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # their scripts wait for them, and this does not
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listener, 0], [], [])
            if listener not in ready:  # whoever started this is gone
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                become(connection)
            connection.close()


def preload() -> None:
    import transformers
    import vllm.entrypoints.cli.serve
    import vllm.model_executor.models.llama
    import vllm.v1.worker.cpu_worker
    from vllm.model_executor.models import registry

    assert transformers.AutoModelForCausalLM
    assert vllm.LLM
    # vLLM looks at each class of model in a process of its own, which imports everything again.
    registry._run_in_subprocess = lambda inspect: inspect()
    gc.collect()
    gc.freeze()


def become(connection: socket.socket) -> NoReturn:
    """Runs what a script asks for, and tells it the exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    size, files, _, _ = socket.recv_fds(connection, 4, 3)
    request = json.loads(connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    threading.Thread(target=follow, args=(connection,), daemon=True).start()
    status = 1
    try:
        status = run(request["words"], request["cwd"])
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        connection.sendall(bytes([status & 255]))
        os._exit(status & 255)


def follow(connection: socket.socket) -> None:
    """Is terminated as the script is, and ends with it."""
    while connection.recv(1):
        os.kill(os.getpid(), signal.SIGTERM)
    os._exit(137)


def run(words: list[str], folder: str) -> int:
    """`python -m MODULE ...`, `python -c CODE ...` or `python FILE ...`. Returns: the exit status."""
    sys.path[:0] = [folder, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    option = words[0] if words[0] in ("-m", "-c") else None
    name, *arguments = words[1:] if option else words
    sys.argv = [option or name, *arguments]
    try:
        if option == "-m":
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        elif option == "-c":
            exec(name, {"__name__": "__main__"})
        else:
            runpy.run_path(name, run_name="__main__")
    except SystemExit as ended:
        return _status(ended.code)
    return 0


def _status(code: Any) -> int:
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    main(*sys.argv[1:])
