"""Guards that calm, and engines that could not do so exactly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from emovllm.engine.config import _check_calm
from emovllm.errors import Unsupported
from emovllm.guards import Guard

CALM = [Guard.parse("anger>0.9:calm"), Guard.parse("fear>0.9:flag")]


def check(guards: list[Guard], names: tuple[str, ...] = ("anger",), root: str | None = None, **changes: Any) -> None:
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(pipeline_parallel_size=changes.pop("stages", 1)),
        lora_config=None,
        kv_transfer_config=None,
    )
    vars(config).update(changes)
    settings: Any = SimpleNamespace(guards=guards, circuit_root=root)
    circuits: Any = [SimpleNamespace(names=names)]
    _check_calm(config, settings, circuits)  # type: ignore[arg-type]


def test_a_circuit_with_the_emotion_will_do() -> None:
    check(CALM)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("fear", "joy")}, "calms anger, and no circuit has that emotion"),
        ({"stages": 2}, "pipeline parallelism"),
        ({"lora_config": SimpleNamespace(max_loras=2)}, "LoRA adapters"),
        ({"root": "circuits"}, "circuits that are loaded later"),
        ({"kv_transfer_config": SimpleNamespace()}, "KV transfer"),
    ],
)
def test_what_would_not_be_exact_is_refused_for_guards_that_calm_alone(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        check(CALM, **changes)
    check(CALM[1:], **changes)
