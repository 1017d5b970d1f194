"""A stage's progress on disk: an interrupted run goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from emovllm.errors import CheckpointError
from emovllm.files import write_atomically


class Checkpoint:
    """One file: arrays, how many steps they stand for, and the inputs that they came from.

    Written whole under another name and then renamed: a full disk or an interruption leaves the file before it.
    """

    def __init__(self, path: str | Path, inputs: Mapping[str, Any], seconds: float = 20.0) -> None:
        """`inputs`: JSON values; progress with others is refused. `seconds`: at most as often is it saved."""
        self.path = Path(path)
        self._inputs = json.dumps(inputs, sort_keys=True)
        self._seconds = seconds
        self._saved = time.monotonic()

    def load(self) -> tuple[dict[str, np.ndarray], int]:
        """The arrays and the steps done; nothing and 0 at first. Raises: CheckpointError."""
        if not self.path.exists():
            return {}, 0
        try:
            with safetensors.safe_open(self.path, framework="numpy") as file:
                about = json.loads((file.metadata() or {})["about"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            inputs, done = about["inputs"], int(about["done"])
        except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
            raise CheckpointError(f"{self.path}: damaged ({error}); delete it, or start anew with --fresh") from None
        if inputs != self._inputs:
            raise CheckpointError(
                f"{self.path}: made with {_difference(inputs, self._inputs)}; "
                "start anew with --fresh, or give another --work"
            )
        return arrays, done

    def save(self, arrays: Mapping[str, np.ndarray], done: int, always: bool = False) -> None:
        """Saves if the last time is long enough ago, or `always`. Raises: OSError; the file before it stays."""
        if not always and time.monotonic() - self._saved < self._seconds:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"about": json.dumps({"inputs": self._inputs, "done": done})}
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        write_atomically(self.path, safetensors.numpy.save(contiguous, metadata=metadata))
        self._saved = time.monotonic()


def _difference(old: str, new: str) -> str:
    was, now = json.loads(old), json.loads(new)
    names = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
    return "another " + ", another ".join(names)
