"""What is worked on at each step: on a CPU NumPy's arrays, where an operation on a few rows takes a microsecond and
PyTorch's several; elsewhere PyTorch's, which a device works on while the host goes on. Both take the same expressions.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

# NumPy's or PyTorch's; whoever has one has all alike.
Array = Any
Kind = Literal["float32", "int64", "uint8"]


class Arrays:
    """Makes them. on_host: with NumPy, by default where the device is a CPU."""

    def __init__(self, device: torch.device, on_host: bool | None = None) -> None:
        self._device = device
        self._on_host = device.type == "cpu" if on_host is None else on_host
        library: Any = np if self._on_host else torch
        self.where, self.minimum = library.where, library.minimum

    def zeros(self, shape: tuple[int, ...], kind: Kind = "float32") -> Array:
        if self._on_host:
            return np.zeros(shape, kind)
        return torch.zeros(shape, dtype=getattr(torch, kind), device=self._device)

    def moved(self, values: np.ndarray) -> Array:
        """From the host; with NumPy the same memory."""
        if self._on_host:
            return values
        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":
            # From pageable memory a copy would wait for the device.
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def seen(self, tensor: Tensor) -> Array:
        """A tensor on the device as one of them; they have one memory."""
        return tensor.numpy() if self._on_host else tensor

    def fetched(self, values: Array) -> np.ndarray:
        """On the host."""
        return values if self._on_host else values.cpu().numpy()

    def softmax(self, values: Array) -> Array:
        """Over the last axis."""
        if not self._on_host:
            return values.softmax(-1)
        # PyTorch's would wake its threads for a few rows.
        powers = np.exp(values - values.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def grown(self, values: Array) -> Array:
        """Twice the rows, zeros below."""
        library: Any = np if self._on_host else torch
        return library.concatenate([values, library.zeros_like(values)])


class Shape(NamedTuple):
    """How much is kept by slot.

    span: the most tokens of a request that is beyond its prompt in one forward: one, and the drafts. tokens: the
    longest reply whose readings are kept, 0 for none.
    """

    slots: int
    span: int
    tokens: int

    @property
    def ring(self) -> int:
        """Positions of which the latest values are kept: a power of two."""
        return 1 << self.span.bit_length()


class Rings:
    """The latest values by slot and position: a forward needs the one before its first token, rejected ones included.

    values: [slots * size, ...], one slot after the other; a position's place in a slot is its remainder by `size`.
    """

    def __init__(
        self, arrays: Arrays, slots: int, size: int, kind: Kind = "float32", columns: tuple[int, ...] = ()
    ) -> None:
        self._arrays, self._size = arrays, size
        self.values = arrays.zeros((slots * size, *columns), kind)

    def put(self, slot: int, values: np.ndarray, first: int) -> None:
        """values: by position, [n, ...] from `first` on."""
        ring = np.zeros((self._size, *values.shape[1:]), values.dtype)
        positions = first + np.arange(len(values))[-self._size :]
        ring[positions % self._size] = values[-self._size :]
        self.values[slot * self._size : (slot + 1) * self._size] = self._arrays.moved(ring)

    def grow(self) -> None:
        """Twice the slots."""
        self.values = self._arrays.grown(self.values)
