"""What stored work was made with: it is taken up with the same settings alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emovllm.errors import StoredError
from emovllm.files import read_text


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as a file gives them back: tuples are lists."""
    return dict(json.loads(json.dumps(settings)))


def refuse_others(
    place: Path, before: Mapping[str, Any], now: Mapping[str, Any], remedy: str, error: type[StoredError] = StoredError
) -> None:
    """Raises: `error` where work at `place` has other settings, naming them. remedy: what to do instead of going on."""
    before, now = plain(before), plain(now)
    if names := [name for name in now | before if before.get(name) != now.get(name)]:
        raise error(f"{place}: made with other settings: {', '.join(names)}; give the same again to go on, or {remedy}")


def read_settings(path: Path, remedy: str) -> dict[str, Any] | None:
    """The settings in a file; None where there is none. Raises: StoredError."""
    if not path.exists():
        return None
    try:
        return dict(json.loads(read_text(path, StoredError)))
    except (ValueError, TypeError):
        raise StoredError(f"{path}: damaged; {remedy}") from None
