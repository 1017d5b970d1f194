"""A stage's progress on disk: an interrupted run goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import safetensors
import safetensors.numpy

from emovllm.errors import CheckpointError
from emovllm.files import write_atomically
from emovllm.progress import track
from emovllm_offline.storage.lock import Lock, locked
from emovllm_offline.storage.settings import refuse_others

Item = TypeVar("Item")


class State(Protocol):
    """What steps change, as arrays."""

    def state(self) -> Mapping[str, np.ndarray]: ...

    def restore(self, arrays: dict[str, np.ndarray], done: int) -> None:
        """Goes on from `state()` after so many steps."""


class Arrays(dict[str, np.ndarray]):
    """The simplest state: arrays by name, which steps change in place."""

    def state(self) -> Mapping[str, np.ndarray]:
        return self

    def restore(self, arrays: dict[str, np.ndarray], done: int) -> None:
        self.update(arrays)


class Checkpoint:
    """One file: arrays, how many steps they stand for, and the inputs that they came from.

    Written whole under another name and then renamed: a full disk or an interruption leaves the file before it.
    """

    def __init__(self, path: str | Path | None, inputs: Mapping[str, Any], seconds: float = 20.0) -> None:
        """path: None keeps nothing. inputs: JSON values; progress with others is refused. seconds: at most as often
        is it saved."""
        self.path = None if path is None else Path(path)
        self._inputs = json.dumps(inputs, sort_keys=True)
        self._seconds = seconds
        self._saved = time.monotonic()
        self._lock: Lock | None = None

    def steps(self, items: Sequence[Item], state: State, what: str, *, unit: str, shown: bool) -> Iterator[Item]:
        """The items that are not done yet, with a bar; `state` is that of the steps done, at once.

        It is saved now and then, after a step, and after the last. Raises: as `load`.
        """
        arrays, done = self.load()
        if done:
            state.restore(arrays, done)
        return self._steps(items, state, done, track(items[done:], what, len(items), done=done, unit=unit, shown=shown))

    def _steps(self, items: Sequence[Item], state: State, done: int, left: Iterator[Item]) -> Iterator[Item]:
        for step, item in enumerate(left, done + 1):
            yield item
            self.save(state.state(), step, always=step == len(items))

    def load(self) -> tuple[dict[str, np.ndarray], int]:
        """The arrays and the steps done; nothing and 0 at first. The folder is this process's from here on.

        Raises: CheckpointError; StoredError where another process is at work there.
        """
        if self.path is None:
            return {}, 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.path.parent)
        if not self.path.exists():
            return {}, 0
        try:
            with safetensors.safe_open(self.path, framework="numpy") as file:
                about = json.loads((file.metadata() or {})["about"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            inputs, done = json.loads(about["inputs"]), int(about["done"])
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(f"{self.path}: damaged ({error}); delete it, or start anew with --fresh") from None
        remedy = "start anew with --fresh, or give another --work"
        refuse_others(self.path, inputs, json.loads(self._inputs), remedy, CheckpointError)
        return arrays, done

    def save(self, arrays: Mapping[str, np.ndarray], done: int, always: bool = False) -> None:
        """Saves if the last time is long enough ago, or `always`. Raises: OSError; the file before it stays."""
        if self.path is None or (not always and time.monotonic() - self._saved < self._seconds):
            return
        metadata = {"about": json.dumps({"inputs": self._inputs, "done": done})}
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        write_atomically(self.path, safetensors.numpy.save(contiguous, metadata=metadata))
        self._saved = time.monotonic()


# Of work that is not to be resumed.
UNSAVED = Checkpoint(None, {})
