"""Starting engines, and the requests that the exactness suite sends them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.warm import COLD

WORKER = Path(__file__).with_name("worker.py")


@dataclass
class Reply:
    tokens: list[int]
    logprobs: list[float]
    # With `n` > 1: the other replies.
    others: list[Reply] = field(default_factory=list)
    # With `logprobs` > 0: each token's best alternatives, [token id, logprob], best first.
    top: list[list[list[float]]] = field(default_factory=list)
    # With `prompt_logprobs`: those of the prompt's tokens from its second on.
    prompt_logprobs: list[float] = field(default_factory=list)
    # What was read for each token, [tokens, labels]: logits.
    read: list[list[float]] = field(default_factory=list)
    # What a prefill engine tells a router.
    transfer: dict[str, Any] | None = None
    # Of an engine with guards: finish_reason and stop_reason, and what they did.
    ended: list[Any] | None = None
    acted: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Ask:
    """One request: a prompt, and the emotion fields that go with it."""

    prompt: list[int]
    fields: dict[str, Any] = field(default_factory=dict)
    # Changes of the greedy sampling parameters.
    params: dict[str, Any] = field(default_factory=dict)
    # A LoRA adapter's folder.
    lora: str | None = None
    # The seed of an image (support/images.py), for which the prompt has one token.
    image: int | None = None


def mixed_batch(text_of: Callable[[int, int], list[int]]) -> list[Ask]:
    """The mixed batch: six emotions, blends, negative and zero strength, none, all scopes, schedules, 5
    to 200 tokens."""
    fields: list[dict[str, Any]] = [
        {"emotion": "anger"},
        {"emotion": "sadness"},
        {"emotion": "happiness"},
        {"emotion": "fear"},
        {"emotion": "surprise"},
        {"emotion": "disgust"},
        {"emotion": {"anger": 0.7, "fear": 0.3}},
        {"emotion": {"happiness": 1.0, "surprise": -0.5, "sadness": 0.25}, "emotion_strength": 1.5},
        {"emotion": "anger", "emotion_strength": -1.0},
        {"emotion": "fear", "emotion_strength": 0.0},
        {},
        {"emotion": "sadness", "emotion_scope": "prompt_last", "emotion_strength": 2.0},
        {"emotion": "disgust", "emotion_scope": "all"},
        {"emotion": "happiness", "emotion_scope": "generation", "emotion_strength": 0.5},
        {"emotion": "surprise", "emotion_schedule": {"hold": 4, "half_life": 3}},
        {"emotion": "anger", "emotion_strength": 1.5, "emotion_schedule": [[0, 0.2], [6, 1], [12, 0.4]]},
    ]
    lengths = [5, 17, 33, 64, 100, 200, 31, 32, 150, 70, 48, 90, 120, 15, 40, 63]
    return [Ask(text_of(seed, length), asked) for seed, (length, asked) in enumerate(zip(lengths, fields, strict=True))]


class EngineError(RuntimeError):
    """What the engine's process said instead of a reply."""


class Engine:
    """A vLLM engine in another process; ends with it."""

    script = WORKER

    def __init__(self, log: Path, env: dict[str, str] | None = None, hook: str | None = None, **config: Any) -> None:
        """`hook`: a function of hooks.py that is called in the engine's process before vLLM is."""
        self._log = log.open("w")
        self._metrics: dict[str, float] = {}
        self._process = subprocess.Popen(
            [sys.executable, str(self.script), json.dumps(config), *([hook] if hook else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={
                **os.environ,
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                **(env or {}),
                **(COLD if hook else {}),
            },
            start_new_session=True,
        )
        try:
            self._read()
        except EngineError:
            self.close()
            raise

    def generate(self, asks: list[Ask], max_tokens: int) -> list[Reply]:
        """Sends one batch. Greedy, past the end-of-sequence token, so that each reply has `max_tokens` tokens."""
        reply = self._ask(self._requests(asks, max_tokens))
        self._metrics = reply["metrics"]
        return self._replies(reply)

    def restart(self, env: dict[str, str] | None = None, **config: Any) -> None:
        """Another engine in the same process, which spares vLLM's imports; in-process engines only. After an
        EngineError, the process can still be restarted. `env` changes the process's first environment."""
        self._ask({"config": config, "env": env or {}})

    def vectors(self) -> dict[str, list[list[float]]]:
        """The folded vectors of each site, [emotions, hidden]; in-process engines only."""
        vectors: dict[str, list[list[float]]] = self._ask({"vectors": True})["vectors"]
        return vectors

    def buffers(self) -> set[str]:
        """The names of the buffers that are ours, of all modules of the model; in-process engines only."""
        return set(self._ask({"buffers": True})["buffers"])

    def columns(self, count: int) -> dict[str, list[list[float]]]:
        """The first `count` columns of each row-parallel projection's weights as its kernel multiplies by them, by its
        module's name: [count, hidden]; in-process engines only."""
        columns: dict[str, list[list[float]]] = self._ask({"columns": count})["columns"]
        return columns

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of vLLM's `LLM`, with plain data in and out."""
        return self._ask({"method": method, "args": args, "kwargs": kwargs})["result"]

    def log(self) -> str:
        return Path(self._log.name).read_text()

    def metric(self, name: str) -> float:
        """A counter of vLLM's, as of the last batch."""
        return self._metrics[name]

    def close(self) -> None:
        """Idempotent."""
        if self._log.closed:
            return
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # A worker that waits for one that failed would outlive the engine.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._log.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _requests(asks: list[Ask], max_tokens: int) -> dict[str, Any]:
        return {
            "prompts": [ask.prompt for ask in asks],
            "fields": [ask.fields for ask in asks],
            "params": [ask.params for ask in asks],
            "loras": [ask.lora for ask in asks],
            "images": [ask.image for ask in asks],
            "max_tokens": max_tokens,
        }

    @staticmethod
    def _replies(reply: dict[str, Any]) -> list[Reply]:
        return [
            Reply(**{**output, "others": [Reply(**other) for other in output["others"]]}) for output in reply["outputs"]
        ]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(f"the engine ended; its log {self._log.name} with\n{self.log()[-3000:]}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise EngineError(reply["error"])
        return reply


class AsyncEngine(Engine):
    """Behind the client that servers use."""

    script = Path(__file__).with_name("async_worker.py")

    def beams(self, ask: Ask, width: int, max_tokens: int) -> list[tuple[list[int], float]]:
        """The replies of a beam search, best first, and the log-probability of each."""
        asked = {"prompt": ask.prompt, "fields": ask.fields, "width": width, "max_tokens": max_tokens}
        return [tuple(beam) for beam in self._ask({"beams": asked})["beams"]]

    def admin(self, *asked: str) -> str:
        """Loads or unloads a circuit: `load`, name, path, or `unload`, name. Returns: why not, or nothing."""
        return str(self._ask({"admin": asked})["refusal"])

    def generate_while(self, asks: list[Ask], max_tokens: int, *asked: str) -> tuple[list[Reply], str, bool]:
        """The replies to requests during which a circuit is loaded or unloaded, why not, and whether that waited."""
        reply = self._ask({"admin": asked, "requests": self._requests(asks, max_tokens)})
        return self._replies(reply), reply["refusal"], reply["waited"]


def assert_exact(engine: Engine, oracle: Any, asks: list[Ask], max_tokens: int) -> None:
    """The engine's replies are those of Hugging Face with hooks."""
    replies = engine.generate(asks, max_tokens)
    assert_same(replies, oracle.generate(asks, max_tokens, replies))


def assert_same(replies: list[Reply], expected: list[Reply], tolerance: float = 1e-3) -> None:
    for number, (reply, wanted) in enumerate(zip(replies, expected, strict=True)):
        assert reply.tokens == wanted.tokens, f"request {number}"
        assert reply.logprobs == pytest.approx(wanted.logprobs, abs=tolerance), f"request {number}"
        assert len(reply.read) == len(wanted.read), f"request {number}"
        if wanted.read:
            assert len(reply.read) == len(reply.tokens), f"request {number}"
            np.testing.assert_allclose(reply.read, wanted.read, rtol=0, atol=1e-4, err_msg=f"request {number}")
