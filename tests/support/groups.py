"""What several tests share: which of them therefore run in one process, and when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

# Fixtures of engines and servers that tests of several files use, and the group of these tests.
_GROUPS = {
    "steered_compiled": "default model",
    "plain_eager": "default model",
    "steered_eager": "default model",
    "server": "server",
    "tiny_server": "tiny server",
}
# The longest groups first: were one of them the last, it would run alone. All others follow as they were collected.
_FIRST = [
    *("server", "default model", "V2", "server/test_gpu", "tiny server", "engine/test_modes", "engine/test_parallel"),
    *("engine/test_architectures", "server/test_bench", "server/test_shutdown", "engine/test_circuits"),
    *("server/api/test_circuits", "engine/test_steering", "server/verify/test_command"),
]


class Closeable(Protocol):
    def close(self) -> None: ...


_open: list[Closeable] = []


def group_of(item: pytest.Item) -> str:
    """Tests that use a shared fixture form a group; all others go by their file."""
    names = getattr(item, "fixturenames", ())
    for name, group in _GROUPS.items():
        if name in names:
            return group
    return str(item.path.relative_to(Path(__file__).parents[1]).with_suffix(""))


def order_of(group: str) -> int:
    return _FIRST.index(group) if group in _FIRST else len(_FIRST)


def until_the_group_ends(resource: Closeable) -> None:
    """Closes `resource` after the last test of the group that is running. `close` must be idempotent."""
    _open.append(resource)


def close() -> None:
    while _open:
        _open.pop().close()
