"""`emovllm serve` in a process of its own, for the time of one evaluation."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from emovllm import cpu
from emovllm.environment import reach_loopback_directly, without_admin_key
from emovllm.errors import EvaluationError
from emovllm_offline.evaluation.client import Connection

# vLLM's import, the model's conversion and a first compilation.
READY_SECONDS = 1200


@contextlib.contextmanager
def local_server(
    model: str,
    circuit: str | Path,
    log: Path,
    *,
    steering: bool,
    concurrency: int,
    engine_args: Sequence[str] = (),
) -> Iterator[Connection]:
    """A server of this model and circuit; it ends with the context.

    model, circuit: folders, or Hugging Face ids. engine_args: further arguments of `vllm serve`.
    Raises: EvaluationError where it does not start.
    """
    reach_loopback_directly()
    port, key = _free_port(), secrets.token_hex(16)
    command = [sys.executable, "-m", "emovllm.cli", "serve", model, "--circuit", str(circuit)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-num-seqs", str(max(8, concurrency))]
    # No sampling parameters of the model's own: every method is decoded alike.
    command += ["--generation-config", "vllm", "--served-model-name", "evaluated"]
    command += ["--additional-config", json.dumps({"emovllm": {"steering": steering}})]
    if cpu.is_cpu_build() and "--block-size" not in engine_args:
        # The default of 128 tokens is longer than most prompts, which would share nothing.
        command += ["--block-size", "32"]
    if not any(argument.startswith("--dtype") for argument in engine_args):
        # In float32 it is as large as this process has it, for perplexities.
        command += ["--dtype", cpu.dtype()]
    environment = {"VLLM_CPU_KVCACHE_SPACE": cpu.SMALL_CACHE, "VLLM_NO_USAGE_STATS": "1", **without_admin_key()}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *engine_args],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Not on the command line, where others of this machine could read it.
            env={**environment, "VLLM_API_KEY": key},
            # A session of its own: Ctrl-C is this process's to handle, and the engine ends with the server.
            start_new_session=True,
        )
    # Terminated, it ends the engine too.
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield Connection(f"http://127.0.0.1:{port}/v1", "evaluated", key, concurrency=concurrency)
    finally:
        signal.signal(signal.SIGTERM, previous)
        _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise EvaluationError(f"the server did not start: {_last_error(log)}; see {log}")
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise EvaluationError(f"the server was not ready after {READY_SECONDS} s; see {log}")


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [
        line
        for line in lines
        if line.startswith(("emovllm serve:", "emovllm:")) or "Error: " in line or "Unsupported: " in line
    ]
    return (told or lines or ["it said nothing"])[-1][:300]


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break
    # The engine, should the server have left it behind.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
