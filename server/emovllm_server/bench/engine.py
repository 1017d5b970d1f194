"""The parent's end of an engine's process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from emovllm import cpu
from emovllm.emotion import KEY
from emovllm.errors import BenchError
from emovllm_server.bench.plan import HF, STEERED, Settings
from emovllm_server.serve import prepare_environment

MODULES = {HF: "emovllm_offline.model.timing_process"}
VLLM_MODULE = "emovllm_server.bench.engine_process"


class Measuring(Protocol):
    """What a benchmark asks of an engine."""

    about: dict[str, Any]

    def measure(
        self, prompts: list[list[int]], fields: list[dict[str, Any]], output_tokens: int, one_by_one: bool = False
    ) -> dict[str, Any]: ...

    def close(self) -> None: ...


class Engine:
    """An engine in a process of its own, idle until asked; ends with `close`, or with this process."""

    about: dict[str, Any]  # what it says of itself, once it is ready

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Mapping[str, Any],
        env: Mapping[str, str],
        log: Path,
        wait: bool = True,
    ) -> None:
        """wait: until it is ready; several can start together where each is waited for later. Raises: BenchError."""
        self._name = name
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env=dict(env),
                # A session of its own: Ctrl-C is this process's to handle, and workers end with the engine.
                start_new_session=True,
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it is ready. Raises: BenchError, the engine being closed then."""
        try:
            self.about = self._read()
        except BaseException:
            self.close()
            raise

    def measure(
        self, prompts: list[list[int]], fields: list[dict[str, Any]], output_tokens: int, one_by_one: bool = False
    ) -> dict[str, Any]:
        """Raises: BenchError."""
        return self.ask(
            {"prompts": prompts, "fields": fields, "output_tokens": output_tokens, "one_by_one": one_by_one}
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the process answers to a request of its own kind. Raises: BenchError."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the reader below says that it ended
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"the engine {self._name} ended; see {self._log}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BenchError(f"the engine {self._name}: {reply['error']}; see {self._log}")
        return reply


def environment(steered: bool) -> dict[str, str]:
    """Of an engine with our plugin, or with none."""
    # In its own process's stead the engine is stepped by hand: no other process may hold it.
    return {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_PLUGINS": KEY if steered else ""}


class Launcher:
    """Starts the engines of one benchmark: all alike, but for the plugin and the circuit."""

    def __init__(self, settings: Settings, model: str, circuit: str, logs: Path) -> None:
        """`model` and `circuit`: where they are."""
        self._settings = settings
        self._model = model
        self._circuit = circuit
        self._logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        os.environ.update(settings.env)
        prepare_environment()
        # Several engines at once.
        cpu.keep_small()
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

    def __call__(self, name: str, start: int) -> Engine:
        log = self._logs / f"{start}-{name.replace(' ', '-')}.log"
        arguments = self.hf_arguments() if name == HF else self.arguments(name)
        engine = Engine(name, MODULES.get(name, VLLM_MODULE), arguments, environment(name == STEERED), log)
        if engine.about.get("plugin", False) != (name == STEERED):
            engine.close()
            raise BenchError(f"{name}: emovllm's plugin is {'' if name != STEERED else 'not '}loaded there; see {log}")
        return engine

    def arguments(self, name: str) -> dict[str, Any]:
        """Of `vllm.LLM`."""
        settings = self._settings
        arguments: dict[str, Any] = {
            "model": self._model,
            "dtype": settings.dtype,
            "max_model_len": settings.max_model_len,
            "max_num_seqs": max(256, *settings.batch_sizes),
            "seed": 0,
            "disable_log_stats": False,  # counters of the prefix cache; a server has them as well
            **settings.engine_args,
        }
        additional = dict(arguments.pop("additional_config", {}))
        ours = additional.pop(KEY, {})
        if name == STEERED:
            additional[KEY] = {**ours, "circuit": self._circuit}
        return {**arguments, "additional_config": additional} if additional else arguments

    def hf_arguments(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "model": self._model,
            "circuit": self._circuit,
            "dtype": settings.dtype,
            "random_weights": settings.engine_args.get("load_format") == "dummy",
        }
