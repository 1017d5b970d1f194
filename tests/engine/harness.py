"""Starting engines, and the requests that the exactness suite sends them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")


@dataclass
class Reply:
    tokens: list[int]
    logprobs: list[float]
    # With `n` > 1: the other replies.
    others: list[Reply] = field(default_factory=list)


@dataclass
class Ask:
    """One request: a prompt, and the emotion fields that go with it."""

    prompt: list[int]
    fields: dict[str, Any] = field(default_factory=dict)
    # Changes of the greedy sampling parameters.
    params: dict[str, Any] = field(default_factory=dict)
    # A LoRA adapter's folder.
    lora: str | None = None


class EngineError(RuntimeError):
    """What the engine's process said instead of a reply."""


class Engine:
    """A vLLM engine in another process; ends with it."""

    def __init__(self, log: Path, env: dict[str, str] | None = None, **config: Any) -> None:
        self._log = log.open("w")
        self._metrics: dict[str, float] = {}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **(env or {})},
        )
        try:
            self._read()
        except EngineError:
            self.close()
            raise

    def generate(self, asks: list[Ask], max_tokens: int) -> list[Reply]:
        """Sends one batch. Greedy, past the end-of-sequence token, so that each reply has `max_tokens` tokens."""
        request = {
            "prompts": [ask.prompt for ask in asks],
            "fields": [ask.fields for ask in asks],
            "params": [ask.params for ask in asks],
            "loras": [ask.lora for ask in asks],
            "max_tokens": max_tokens,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._read()
        self._metrics = reply["metrics"]
        return [
            Reply(**{**output, "others": [Reply(**other) for other in output["others"]]}) for output in reply["outputs"]
        ]

    def metric(self, name: str) -> float:
        """A counter of vLLM's, as of the last batch."""
        return self._metrics[name]

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(f"the engine ended; see {self._log.name}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise EngineError(reply["error"])
        return reply
