"""A server in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

BIN = Path(sys.executable).parent


# As on a GPU, the engine's process runs its one worker itself: that spares the time of a process, which imports vLLM.
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# As vLLM's CPU build does.
WORKER_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


class Server:
    """A server process and its address. `env`: changes of its environment, to which ONE_PROCESS belongs."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, **settings, **ONE_PROCESS, **(env or {})},
                start_new_session=True,
            )

    def wait(self, seconds: float = 600) -> Server:
        """Until the server answers. Raises: RuntimeError where it ends, or is too slow."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}: {self._last_words()}")
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.5)
        raise RuntimeError(f"the server took more than {seconds} s: {self._last_words()}")

    def _last_words(self) -> str:
        return f"{self.log} ends\n{self.log.read_text(errors='replace')[-3000:]}"

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
