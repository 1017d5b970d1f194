"""LoRA adapters, emotions and read-outs in one batch, against Hugging Face with the adapter merged into the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from support.adapters import ADAPTERS, ALPHA, RANK, Adapter
from support.circuits import random_circuit
from support.engine import Ask, Engine, Reply, assert_same, mixed_batch
from support.models import tiny_model
from support.oracle import Oracle
from support.series import Series, reading

pytestmark = pytest.mark.engine

MAX_TOKENS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=512, initializer_range=0.3)


@pytest.fixture(scope="module")
def circuit(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_circuit(model, tmp_path_factory.mktemp("circuits") / "tiny", probe=True)


@pytest.fixture(scope="module")
def adapters(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: Adapter(model, name, root) for name in ADAPTERS}


@pytest.fixture(scope="module")
def expected(model: str, circuit: Path, adapters: dict[str, Adapter]) -> Callable[[list[Ask]], list[Reply]]:
    oracles = {adapter.path: Oracle(adapter.merged, circuit) for adapter in adapters.values()}
    plain = Oracle(model, circuit)
    return lambda asks: [(oracles[ask.lora] if ask.lora else plain).generate([ask], MAX_TOKENS)[0] for ask in asks]


@pytest.fixture(scope="module")
def engine(model: str, circuit: Path, series: Series) -> Engine:
    return series.start(
        model,
        circuit,
        # Traced by Dynamo, so that the coefficients' further columns are part of a graph.
        {"VLLM_CPU_CI_ENV": "1"},
        enforce_eager=False,
        max_model_len=512,
        max_num_seqs=128,
        enable_lora=True,
        # Fewer than the adapters, so that they take each other's. vLLM's CPU kernels give a request without an adapter
        # the last slot's, steered or not, when it shares a batch with adapters: the first test leaves that slot empty.
        max_loras=3,
        max_lora_rank=8,
    )


@pytest.fixture(scope="module")
def mixed() -> list[Ask]:
    return mixed_batch(lambda seed, length: np.random.default_rng(seed).integers(2, 128, length).tolist())


def asks_of(mixed: list[Ask], loras: list[str | None]) -> list[Ask]:
    return reading([Ask(ask.prompt, ask.fields, lora=loras[number % len(loras)]) for number, ask in enumerate(mixed)])


def test_requests_with_and_without_adapters_equal_the_oracle(
    engine: Engine, mixed: list[Ask], adapters: dict[str, Adapter], expected: Callable[[list[Ask]], list[Reply]]
) -> None:
    asks = asks_of(mixed, [None, adapters["both"].path, adapters["attention"].path])
    assert_same(engine.generate(asks, MAX_TOKENS), expected(asks))


def test_adapters_that_take_anothers_slot_equal_the_oracle(
    engine: Engine, mixed: list[Ask], adapters: dict[str, Adapter], expected: Callable[[list[Ask]], list[Reply]]
) -> None:
    # More adapters than slots in one batch: the scheduler makes some wait. Then each comes back on its own.
    asks = asks_of(mixed, [adapters[name].path for name in ("neurons", "both", "neither", "attention")])
    assert_same(engine.generate(asks, MAX_TOKENS), expected(asks))
    for name in ("attention", "neither", "both", "neurons"):
        asks = asks_of(mixed[:4], [adapters[name].path])
        assert_same(engine.generate(asks, MAX_TOKENS), expected(asks))


def test_the_adapters_part_of_the_injection_matters(
    mixed: list[Ask], adapters: dict[str, Adapter], expected: Callable[[list[Ask]], list[Reply]], circuit: Path
) -> None:
    """The two tests above could not tell it from noise otherwise: B A delta against W delta."""
    from safetensors.torch import load_file

    from emovllm.circuit_files import load_circuit

    delta = torch.from_numpy(load_circuit(circuit).site_delta("mlp", 0))
    adapter = load_file(Path(adapters["both"].path) / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"
    part = ALPHA / RANK * delta @ adapter[key.format("A")].T @ adapter[key.format("B")].T
    weight = load_file(Path(adapters["both"].merged) / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    assert part.norm() > 0.1 * (delta @ weight.T).norm()
