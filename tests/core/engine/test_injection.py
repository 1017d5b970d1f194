"""What ranks fold of a circuit is added up without the device's communicators, and kept as the graph reads it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from emovllm.circuit_files import load_circuit
from emovllm.engine import injection
from emovllm.engine.injection import Site
from support.circuits import random_circuit
from support.models import tiny_model


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


def test_a_circuit_folded_in_32_bits_is_known_by_those_and_kept_in_16(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    circuit = load_circuit(random_circuit(model, tmp_path / "circuit"))
    weight = load_file(Path(model) / "model.safetensors")["model.layers.0.mlp.down_proj.weight"].float()
    hidden, width = weight.shape
    layer = SimpleNamespace(
        quant_method=None,
        params_dtype=torch.float32,
        output_size=hidden,
        input_size=width,
        input_size_per_partition=width,
        tp_rank=0,
        tp_size=1,
        emotion_vectors=torch.ones(len(circuit.names) + 1, hidden, dtype=torch.bfloat16),
    )
    site = Site("mlp", 0, layer, lambda layer, x, bias: x @ weight.T, 16)  # type: ignore[arg-type]
    injection.fill([site], circuit, 1)
    expected = (torch.from_numpy(circuit.site_delta("mlp", 0)) @ weight.T).bfloat16().float()
    torch.testing.assert_close(layer.emotion_vectors[1:].float(), expected, rtol=2**-7, atol=1e-7)
    assert (layer.emotion_vectors[0] == 1).all()
