"""Engines that are there side by side, for a step that asks them in turn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.commands import StepFailed, last_words
from emovllm.emotion import KEY
from emovllm.errors import BenchError
from emovllm_server.bench.engine import Engine, environment


@dataclass(frozen=True)
class Wanted:
    """arguments: of `vllm.LLM`. circuit: None for plain vLLM."""

    arguments: dict[str, Any]
    circuit: Path | None = None

    def all_arguments(self) -> dict[str, Any]:
        if self.circuit is None:
            return self.arguments
        return {**self.arguments, "additional_config": {KEY: {"circuit": str(self.circuit)}}}


@contextmanager
def side_by_side(module: str, wanted: Mapping[str, Wanted], folder: Path) -> Iterator[dict[str, Engine]]:
    """Engines by name, all ready, that started together; they end with the block. Raises: StepFailed."""
    with contextlib.ExitStack() as running:
        engines = {}
        for name, one in wanted.items():
            # A cache of its own: engines that start together would load what another is still writing.
            env = {**environment(one.circuit is not None), "VLLM_CACHE_ROOT": str(folder / f"cache-{name}")}
            engine = Engine(name, module, one.all_arguments(), env, folder / f"{name}.log", wait=False)
            engines[name] = running.enter_context(contextlib.closing(engine))
        for name, engine in engines.items():
            try:
                engine.wait()
            except BenchError as error:
                raise StepFailed(f"{error}\n{last_words(folder / f'{name}.log')}") from None
        yield engines
