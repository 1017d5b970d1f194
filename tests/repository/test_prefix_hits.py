"""The simulation of vLLM's prefix cache: what conversations find in it, by how an emotion is asked for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

_PATH = Path(__file__).parents[2] / "benchmarks" / "prefix_hits.py"
# More than these conversations have.
BLOCKS = 4_000


@pytest.fixture(scope="module")
def simulation() -> Any:
    spec = importlib.util.spec_from_file_location("prefix_hits", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prefix_hits"] = module
    spec.loader.exec_module(module)
    return module


def test_a_field_keeps_the_prompt_where_the_emotion_changes_and_gives_the_reply_up_where_it_does_not(
    simulation: Any,
) -> None:
    field, forked, plain = simulation.WAYS
    steady, changing = (
        {way: simulation.hits(way, change, BLOCKS, 4) for way in simulation.WAYS} for change in (0.0, 1.0)
    )
    assert steady[field] < steady[forked] <= steady[plain]
    assert changing[forked] < changing[field] < changing[plain]
    # What other emotions there are makes no difference to a prompt.
    assert changing[field] == pytest.approx(steady[field], abs=0.06)
    assert simulation.hits(field, 1.0, BLOCKS, 4) == changing[field]


def test_a_conversation_that_stays_on_its_server_finds_more(simulation: Any) -> None:
    field = simulation.WAYS[0]
    found = [simulation.hits(field, 0.5, BLOCKS, 6, servers=2, route=route) for route in simulation.ROUTES]
    assert found[0] < found[1] <= found[2]
