"""Engines and the oracle; each engine is started once and serves all tests that need it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from support import groups
from support.circuits import random_circuit
from support.engine import Ask, Engine, mixed_batch
from support.models import tiny_model
from support.oracle import Oracle
from support.series import V2, Series, settings

BLOCK = 32


@pytest.fixture(scope="session")
def series(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Series]:
    """For engines of tiny models: one process for all tests that run in this one."""
    series = Series(tmp_path_factory.mktemp("series"))
    yield series
    series.close()


@pytest.fixture(scope="session")
def series_v2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Series]:
    """The same on the V2 runner."""
    series = Series(tmp_path_factory.mktemp("series-v2"), V2)
    yield series
    series.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny one whose weights are wide apart, so that greedy tokens have no ties; its middle layer is neither end."""
    return tiny_model(tmp_path_factory.mktemp("tiny"), num_hidden_layers=4, initializer_range=0.2)


@pytest.fixture(scope="session")
def circuit(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `model`, with a probe."""
    return random_circuit(model, tmp_path_factory.mktemp("circuits") / "read", probe=True)


@pytest.fixture(scope="session")
def oracle(default_model: str, strong_circuit: Path) -> Oracle:
    return Oracle(default_model, strong_circuit)


@pytest.fixture(scope="session")
def text_of(default_model: str) -> Callable[[int, int], list[int]]:
    """`text_of(seed, length)`: token ids of ordinary prose, of exactly this length, different for each seed."""
    tokenizer = AutoTokenizer.from_pretrained(default_model)
    prose = (
        "On {day} the {who} of our street asked me to look after the {what} while everybody else went to the river. "
        "I wrote down when each of them left, closed the gate behind the last one, and sat on the step with a cup of "
        "tea. Around noon a van stopped at number {n}; the driver unloaded {n} boxes, checked a list, and drove off "
        "towards the bridge without a word. In the evening, when they came back, the first thing I said was that "
    )
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    people = ["children", "shopkeepers", "teachers", "painters", "drivers", "bakers"]
    things = ["dog", "bicycles", "garden", "old piano", "letters"]

    def text(seed: int, length: int) -> list[int]:
        once = prose.format(day=days[seed % 7], who=people[seed % 6], what=things[seed % 5], n=3 + seed)
        ids: list[int] = tokenizer(once * (1 + length // 60), add_special_tokens=False)["input_ids"]
        assert len(ids) >= length
        return ids[-length:]

    return text


@pytest.fixture(scope="session")
def mixed(text_of: Callable[[int, int], list[int]]) -> list[Ask]:
    return mixed_batch(text_of)


@pytest.fixture(scope="session")
def start(default_model: str, strong_circuit: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    """`start(steered=..., **config)`: an engine of the default model in float32. The compile cache begins empty, and is
    used as `emovllm serve` does on a CPU: vLLM 0.32 cannot load there what it saves itself."""
    root = tmp_path_factory.mktemp("engines")
    caches = {
        "VLLM_CACHE_ROOT": str(root / "cache"),
        "VLLM_USE_AOT_COMPILE": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
    }

    def start(*, steered: bool, env: dict[str, str] | None = None, **config: Any) -> Engine:
        if steered:
            config["additional_config"] = {"emovllm": settings(strong_circuit)}
        defaults = {"dtype": "float32", "max_model_len": 512, "block_size": BLOCK, "seed": 0, "max_num_seqs": 64}
        return Engine(
            root / f"{len(list(root.glob('*.log')))}.log",
            {**caches, **(env or {})},
            model=default_model,
            disable_log_stats=False,
            **{**defaults, **config},
        )

    return start


@pytest.fixture(scope="session")
def steered_compiled(start: Callable[..., Engine]) -> Iterator[Engine]:
    with start(steered=True) as engine:
        groups.until_the_group_ends(engine)
        yield engine


@pytest.fixture(scope="session")
def plain_eager(start: Callable[..., Engine]) -> Iterator[Engine]:
    with start(steered=False, enforce_eager=True) as engine:
        groups.until_the_group_ends(engine)
        yield engine


@pytest.fixture(scope="session")
def steered_eager(start: Callable[..., Engine]) -> Iterator[Engine]:
    with start(steered=True, enforce_eager=True) as engine:
        groups.until_the_group_ends(engine)
        yield engine
