"""Circuits that come and go: what is refused before any engine is asked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emovllm.catalogue import Catalogue
from emovllm.emotion import KEY
from emovllm.engine.admin import Admin
from emovllm.errors import AdminError
from emovllm.policy import Policy


@pytest.mark.parametrize("method", ["load", "unload"])
def test_a_sleeping_engine_neither_takes_nor_gives_up_a_circuit(tmp_path: Path, method: str) -> None:
    (tmp_path / "late").mkdir()

    async def is_sleeping() -> bool:
        return True

    config: Any = SimpleNamespace(
        parallel_config=SimpleNamespace(),
        additional_config={KEY: {"circuit": "any", "circuit_root": str(tmp_path), "capacity": 8}},
    )
    admin = Admin(SimpleNamespace(vllm_config=config, is_sleeping=is_sleeping), Catalogue.of(Policy(), {}))
    asked = {"load": ("late", "late"), "unload": ("late",)}[method]
    with pytest.raises(AdminError, match="the engine sleeps; wake it up first") as caught:
        asyncio.run(getattr(admin, method)(*asked))
    assert caught.value.status == 409
