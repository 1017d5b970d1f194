"""What ranks fold of a circuit is added up without the device's communicators."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from emovllm.engine import injection
from emovllm.engine.injection import Site


def test_shards_are_added_up_at_once_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def all_reduce(values: Tensor, group: Any) -> None:
        calls.append((group, values.device.type, tuple(values.shape)))
        values.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(injection, "get_tp_group", lambda: SimpleNamespace(cpu_group="of the CPU"))
    layers = [SimpleNamespace(tp_size=size) for size in (2, 1, 2)]
    sites = [Site("mlp", number, layer, lambda: None, 16) for number, layer in enumerate(layers)]  # type: ignore[arg-type, return-value]
    written = [torch.full((6, 17), float(number + 1)) for number in range(3)]
    injection._sum_over_ranks(sites, written)
    assert calls == [("of the CPU", "cpu", (2, 6, 17))]
    assert [float(values[0, 0]) for values in written] == [2, 2, 6]
    injection._sum_over_ranks(sites[1:2], written[1:2])
    assert len(calls) == 1
