"""The exactness suite again, on the V2 model runner: the default on a GPU, here with its Triton kernels interpreted.

Interpreted kernels walk over the vocabulary, hence a model with a tiny one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuits import random_circuit
from harness import Ask, Engine, mixed_batch
from models import tiny_model
from oracle import Oracle
from test_exactness import (  # noqa: F401
    MAX_TOKENS,
    assert_same,
    test_a_mixed_batch_equals_the_oracle,
    test_a_mixed_batch_in_eager_mode_equals_the_oracle,
    test_a_steered_request_does_not_change_its_batch_neighbours,
    test_chunked_prefill_equals_the_oracle,
    test_plain_requests_are_bit_identical_in_eager_mode,
    test_preempted_requests_equal_the_oracle,
    test_prompts_are_shared_between_emotions_as_between_plain_requests,
    test_repeats_across_emotions_on_block_boundaries_equal_the_oracle,
    test_the_next_turn_of_a_conversation_equals_the_oracle,
    test_the_oracle_itself_is_moved_by_every_emotion,
)

pytestmark = pytest.mark.engine

VOCABULARY = 128
V2 = {
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "TRITON_INTERPRET": "1",
    "PYTHONPATH": str(Path(__file__).with_name("triton_cpu")),
    # Dynamo traces the model as ever; the graph then runs without Inductor.
    "VLLM_CPU_CI_ENV": "1",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(
        tmp_path_factory.mktemp("tiny"), vocab_size=VOCABULARY, max_position_embeddings=512, initializer_range=0.3
    )


@pytest.fixture(scope="module")
def circuit(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_circuit(model, tmp_path_factory.mktemp("circuits") / "tiny")


@pytest.fixture(scope="module")
def oracle(model: str, circuit: Path) -> Oracle:
    return Oracle(model, circuit)


@pytest.fixture(scope="module")
def text_of() -> Callable[[int, int], list[int]]:
    return lambda seed, length: np.random.default_rng(seed).integers(2, VOCABULARY, length).tolist()


@pytest.fixture(scope="module")
def mixed(text_of: Callable[[int, int], list[int]]) -> list[Ask]:
    return mixed_batch(text_of)


@pytest.fixture(scope="module")
def start(model: str, circuit: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    root = tmp_path_factory.mktemp("engines")

    def start(*, steered: bool, **config: Any) -> Engine:
        if steered:
            config["additional_config"] = {"emovllm": {"circuit": str(circuit)}}
        defaults = {"dtype": "float32", "max_model_len": 512, "block_size": 32, "seed": 0, "max_num_seqs": 64}
        log = root / f"{len(list(root.iterdir()))}.log"
        engine = Engine(
            log, V2, model=model, skip_tokenizer_init=True, disable_log_stats=False, **{**defaults, **config}
        )
        assert "vllm.v1.worker.gpu.model_runner" in log.read_text() or "model_runner.py" in log.read_text()
        return engine

    return start


@pytest.fixture(scope="module")
def plain_eager(start: Callable[..., Engine]) -> Iterator[Engine]:
    with start(steered=False, enforce_eager=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def plain_compiled(plain_eager: Engine) -> Engine:
    return plain_eager


@pytest.fixture(scope="module")
def steered_eager(start: Callable[..., Engine]) -> Iterator[Engine]:
    with start(steered=True, enforce_eager=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def steered_compiled(start: Callable[..., Engine]) -> Iterator[Engine]:
    with start(steered=True) as engine:
        yield engine


def test_speculative_decoding_equals_the_oracle(start: Callable[..., Engine], oracle: Oracle, mixed: list[Ask]) -> None:
    repeating = [Ask((ask.prompt * 8)[:40], ask.fields) for ask in mixed]
    speculation = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 1}
    with start(steered=True, speculative_config=speculation, enforce_eager=True) as engine:
        replies = engine.generate(repeating, MAX_TOKENS)
        drafted = engine.metric("vllm:spec_decode_num_draft_tokens")
        accepted = engine.metric("vllm:spec_decode_num_accepted_tokens")
    assert 0 < accepted < drafted
    assert_same(replies, oracle.generate(repeating, MAX_TOKENS))
