"""Keys and values that leave an engine and come back, to it or to another, against Hugging Face with hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emovllm.emotion import KEY
from emovllm.engine.transfer import PARAMS
from support.circuits import random_circuit
from support.engine import Ask, Engine, EngineError, assert_exact, assert_same
from support.models import tiny_model
from support.oracle import Oracle
from support.series import Series, mixed_batch, reading, settings

pytestmark = pytest.mark.engine

TOKENS = 8
# Keys and values of a block of 32 tokens: 3 layers of one head of 32, in float32.
BLOCK_BYTES = 2 * 3 * 32 * 32 * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"), initializer_range=0.3)


@pytest.fixture(scope="module")
def circuit(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_circuit(model, tmp_path_factory.mktemp("circuits") / "tiny", probe=True)


@pytest.fixture(scope="module")
def oracle(model: str, circuit: Path) -> Oracle:
    return Oracle(model, circuit)


def further_turns(asks: list[Ask], replies: list[list[int]]) -> list[Ask]:
    """Each prompt and its reply, asked for with the next one's emotion: the reply is prompt now, and not steered."""
    after = asks[1:] + asks[:1]
    return [Ask(ask.prompt + reply, other.fields) for ask, reply, other in zip(asks, replies, after, strict=True)]


def test_offloaded_blocks_are_those_of_the_emotion(series: Series, model: str, circuit: Path, oracle: Oracle) -> None:
    copying = {"spec_name": "CopyingSpec", "spec_module_path": "offloaded", "offload_prompt_only": False}
    offloading = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {**copying, "cpu_bytes_to_use": 24 * BLOCK_BYTES},
    }
    # Room for one request at a time on the device, and for a few of them beside it.
    engine = series.start(model, circuit, num_gpu_blocks_override=5, kv_transfer_config=offloading)
    # The third block is full with the prompt's last token and the reply's first.
    text = (mixed_batch()[3].prompt * 2)[:95]
    asks = reading([Ask(text, ask.fields) for ask in mixed_batch()])
    first = oracle.generate(asks, TOKENS)
    further = further_turns(asks, [reply.tokens for reply in first])
    for batch in (asks, asks[::-1], further):
        assert_exact(engine, oracle, batch, TOKENS)
    # What does not fit beside it is computed anew, what does is loaded.
    assert 0 < engine.metric("vllm:external_prefix_cache_hits") < engine.metric("vllm:external_prefix_cache_queries")


def test_a_prompt_that_another_engine_computed_is_continued_as_the_oracle_does(
    series: Series, model: str, circuit: Path, oracle: Oracle, tmp_path: Path
) -> None:
    transfer = {
        "kv_connector": "Carrier",
        "kv_connector_module_path": "carrier",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"folder": str(tmp_path)},
    }
    ours = {KEY: {**settings(circuit), "trusted_connectors": ["Carrier"]}}

    def start() -> Engine:
        return series.start(model, None, kv_transfer_config=transfer, additional_config=ours)

    asks = reading(mixed_batch())
    # Every other one as with a model with states, whose prompt's last token is left to the decode engine.
    away = [{"do_remote_decode": True, "all_but_last": number % 2 == 1} for number in range(len(asks))]
    prefilled = start().generate([with_transfer(ask, where) for ask, where in zip(asks, away, strict=True)], 1)
    # The router sends the same body again, with what the prefill engine told it.
    told = [reply.transfer or {} for reply in prefilled]
    decode = start()
    replies = decode.generate([with_transfer(ask, there) for ask, there in zip(asks, told, strict=True)], TOKENS)
    assert_same(replies, oracle.generate(asks, TOKENS, replies))
    # Nothing of a prompt was computed here but its last token.
    lengths = [len(ask.prompt) - where["all_but_last"] for ask, where in zip(asks, away, strict=True)]
    assert decode.metric("vllm:external_prefix_cache_hits") == sum(lengths)

    anger, sadness, plain = asks[0], asks[1], Ask(asks[0].prompt)
    silent = {name: value for name, value in told[0].items() if name != KEY}
    refused = [
        (Ask(anger.prompt, sadness.fields), told[0], "the prefill instance steered"),
        (Ask(anger.prompt, {**anger.fields, "emotion_strength": 0.5}), told[0], "the prefill instance steered"),
        (plain, told[0], "and this request asks for none"),
        (anger, silent, "the prefill instance did not say what it steered"),
        (plain, silent, "the prefill instance did not say what it steered"),
        (plain, {"do_remote_decode": True, "remote_block_ids": [[1]]}, "a prompt that quotes it"),
    ]
    for ask, there, message in refused:
        with pytest.raises(EngineError, match=message):
            decode.generate([with_transfer(ask, there)], TOKENS)
    # The engine goes on.
    assert_exact(decode, oracle, asks[:2], TOKENS)


def with_transfer(ask: Ask, params: dict[str, Any]) -> Ask:
    return Ask(ask.prompt, {**ask.fields, PARAMS: params})
