"""Guards of an engine: replies end, or are flagged, where Hugging Face's states say that they must, in any order of
work, whether they are asked what they read as or not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from emovllm.emotion import KEY
from emovllm.probe import probabilities
from support.engine import Ask, EngineError, Reply
from support.oracle import Oracle
from support.series import Series, mixed_batch, reading

pytestmark = pytest.mark.engine

TOKENS = 24
ROW = 3
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}


@pytest.fixture(scope="module")
def oracle(model: str, circuit: Path) -> Oracle:
    return Oracle(model, circuit)


class Chosen(NamedTuple):
    """A label and a bound that no token of the batch comes near, above which some replies read `ROW` tokens in a row
    first in their middle, and others never do."""

    label: str
    bound: float

    @property
    def name(self) -> str:
        return f"{self.label}>{self.bound}x{ROW}"


def chances(oracle: Oracle, ask: Ask, tokens: list[int]) -> np.ndarray:
    """[tokens, labels]."""
    return probabilities(np.array(oracle.read(ask, tokens), np.float32))


def first_row(above: np.ndarray) -> int | None:
    """The last of the first `ROW` tokens in a row that are above."""
    rows = [end for end in range(ROW - 1, len(above)) if above[end - ROW + 1 : end + 1].all()]
    return rows[0] if rows else None


@pytest.fixture(scope="module")
def right(oracle: Oracle) -> list[Reply]:
    return oracle.generate(mixed_batch(), TOKENS)


@pytest.fixture(scope="module")
def chosen(oracle: Oracle, right: list[Reply]) -> Chosen:
    read = np.array([chances(oracle, ask, reply.tokens) for ask, reply in zip(mixed_batch(), right, strict=True)])

    def candidates() -> Iterator[tuple[int, Chosen]]:
        assert oracle.probe is not None
        for column, label in enumerate(oracle.probe.labels):
            values = np.unique(read[..., column])
            for low, high in itertools.pairwise(values):
                bound = round(float(low + high) / 2, 4)
                if high - low > 2e-3:
                    ends = [first_row(reply[:, column] > bound) for reply in read]
                    middle = sum(end is not None and ROW <= end < TOKENS - 4 for end in ends)
                    yield min(middle, ends.count(None)), Chosen(label, bound)

    fitting, best = max(candidates())
    assert fitting >= 3
    return best


def check(oracle: Oracle, chosen: Chosen, ask: Ask, reply: Reply, action: str) -> bool:
    """Whether the guard acted, as it must by what the oracle reads of these tokens."""
    assert oracle.probe is not None
    read = chances(oracle, ask, reply.tokens)
    end = first_row(read[:, oracle.probe.labels.index(chosen.label)] > chosen.bound)
    told = [{"guard": chosen.name, "action": action, "token": end}] if end is not None else []
    assert reply.acted == told
    if action == "stop" and end is not None:
        assert len(reply.tokens) == end + 1
        assert reply.ended == ["stop", f"emotion_guard: {chosen.name}"]
    else:
        assert len(reply.tokens) == TOKENS
        assert reply.ended == ["length", None]
    if "emotion_readout" in ask.fields:
        np.testing.assert_allclose(probabilities(np.array(reply.read, np.float32)), read, atol=1e-4)
    else:
        assert reply.read == []
    return end is not None


def started(series: Series, model: str, circuit: Path, guards: list[str], **changes: Any) -> Any:
    settings = {"circuit": str(circuit), "readout": True, "guards": guards}
    return series.start(model, circuit, additional_config={KEY: settings}, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"async_scheduling": False},
        {"speculative_config": NGRAM, "num_gpu_blocks_override": 10},
        {"max_num_batched_tokens": 32, "num_gpu_blocks_override": 8},
    ],
    ids=["plain", "sync", "drafts", "chunks"],
)
def test_replies_end_with_the_token_at_which_a_guard_acts(
    series: Series,
    model: str,
    circuit: Path,
    oracle: Oracle,
    chosen: Chosen,
    right: list[Reply],
    changes: dict[str, Any],
) -> None:
    engine = started(series, model, circuit, [f"{chosen.name}:stop"], **changes)
    asks = reading(mixed_batch())
    for _ in range(2):
        replies = engine.generate(asks, TOKENS)
        acted = [check(oracle, chosen, ask, reply, "stop") for ask, reply in zip(asks, replies, strict=True)]
        assert sum(acted) >= 3
        assert not all(acted)
        for reply, whole in zip(replies, right, strict=True):
            assert reply.tokens == whole.tokens[: len(reply.tokens)]
            assert reply.logprobs == pytest.approx(whole.logprobs[: len(reply.tokens)], abs=1e-3)
    if "speculative_config" in changes:
        assert engine.metric("vllm:spec_decode_num_accepted_tokens") > 0
    assert engine.metric("vllm:num_requests_running") == 0


def test_flags_and_each_of_several_choices(
    series: Series, model: str, circuit: Path, oracle: Oracle, chosen: Chosen
) -> None:
    asks = [Ask(ask.prompt, ask.fields, {"n": 2, "temperature": 1.5, "seed": 5}) for ask in reading(mixed_batch())]
    for action in ("flag", "stop"):
        engine = started(series, model, circuit, [f"{chosen.name}:{action}"])
        acted = [
            check(oracle, chosen, ask, choice, action)
            for ask, reply in zip(asks, engine.generate(asks, TOKENS), strict=True)
            for choice in (reply, *reply.others)
        ]
        assert any(acted)
        assert not all(acted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"readout": True, "guards": ["joy>0.9:flag"]}, "the probe has no label joy; it reads"),
        ({"readout": True, "guards": ["anger>0.9:flag", "anger>0.9:stop"]}, "anger>0.9x4 is given twice"),
        ({"readout": True, "guards": ["anger>2:flag"]}, "emovllm.guards: .*between 0 and 1"),
        ({"readout": True, "guards": ["anger>0.9:soothe"]}, "soothe is none of flag, stop, calm"),
        ({"readout": True, "guards": ["neutral>0.9:calm"]}, "calms neutral, and no circuit has that emotion"),
        ({"guards": ["anger>0.9:flag"]}, "needs a read-out: add --readout, or --probe DIR"),
    ],
)
def test_what_cannot_be_watched_is_refused_at_start(
    series: Series, model: str, circuit: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        series.start(model, circuit, additional_config={KEY: {"circuit": str(circuit), **settings}})
