"""What a checkpoint's `quantization_config` says of its weights: how they were rounded, and to how many bits.

Each method's configuration has a shape of its own, so that widths are looked for by the names that methods give them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# What is not quantised has at least so many.
PLAIN_BITS = 16
# They tell the width of something else.
_NOT_WEIGHTS = ("input", "output", "activation", "kv_cache")
_WIDTHS = re.compile(r"(weight_|num_|w_?|n)?bits?")
_TYPES = re.compile(r"(?:float|fp|int|nf|w|q)(\d)(?!\d)", re.IGNORECASE)
_NAMES = ("quant_method", "quant_algo", "quant_type", "dtype", "forward_dtype", "_type")


def method_of(settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method", "unknown method")
    return str(getattr(method, "value", method))


def bits_of(settings: Mapping[str, Any]) -> int | None:
    """Of the weights that were rounded most coarsely; None where nothing tells."""
    return min((width for width in _widths(settings) if width <= PLAIN_BITS), default=None)


def bits_of_name(name: str) -> int | None:
    """Of a method, type or algorithm by its name alone: 8 of `fp8`, 4 of `Q4_1` or `W4A16`; None of `awq`."""
    return min((int(digit) for digit in _TYPES.findall(name)), default=None)


def _widths(settings: Mapping[str, Any]) -> Iterator[int]:
    for name, value in settings.items():
        if name.startswith(_NOT_WEIGHTS):
            continue
        several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        for one in several:
            if isinstance(one, Mapping):
                yield from _widths(one)
        if _WIDTHS.fullmatch(name) and isinstance(value, int):
            yield value
        elif (there := re.fullmatch(r"load_in_(\d)bit", name)) and value:
            yield int(there[1])
        elif name in _NAMES and (width := bits_of_name(str(getattr(value, "value", value)))):
            yield width
