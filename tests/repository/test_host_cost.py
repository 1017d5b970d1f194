"""The step's cost on the host, at 256 requests, in units of one that does not depend on how fast this machine is: what
the host takes to list the 256 in Python and hand them to torch, as vLLM itself does many times in a step."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

_PATH = Path(__file__).parents[2] / "benchmarks" / "host_cost.py"


def handing_over() -> None:
    rows = torch.from_numpy(np.array(list(range(256)), np.int32))
    rows.index_select(0, torch.arange(256))


def test_a_step_costs_microseconds() -> None:
    spec = importlib.util.spec_from_file_location("host_cost", _PATH)
    assert spec is not None
    assert spec.loader is not None
    host_cost = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(host_cost)
    # 9 to 10 microseconds here, where the three were 0.8, 3.8 and 55 to 86: at most 10 units.
    unit = host_cost.microseconds(handing_over)
    cost = host_cost.measure(256)
    assert cost["no request is steered"] < unit
    assert cost["all are steered, steady decode"] < unit
    assert cost["all are steered, one leaves and one joins"] < 13 * unit
    # 76, 73 and 105 microseconds; with PyTorch's operations, one call for each schedule, they were 170 and more.
    for kind in ("all have a schedule", "all spare their thinking", "all have a target"):
        assert cost[kind] < 18 * unit, kind
