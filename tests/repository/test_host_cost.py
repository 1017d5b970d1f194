"""The step's cost on the host, at 256 requests: below 10 microseconds in steady decode, below 100 when the batch
changes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_PATH = Path(__file__).parents[2] / "benchmarks" / "host_cost.py"


def test_a_step_costs_microseconds() -> None:
    spec = importlib.util.spec_from_file_location("host_cost", _PATH)
    assert spec is not None
    assert spec.loader is not None
    host_cost = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(host_cost)
    cost = host_cost.measure(256)
    assert cost["no request is steered"] < 10
    assert cost["all are steered, steady decode"] < 10
    assert cost["all are steered, one leaves and one joins"] < 100
