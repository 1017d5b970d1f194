"""The default model in the engine against Hugging Face with hooks: the same greedy tokens, logprobs within 1e-3, in
float32. What follows from positions alone is tested on a tiny model: test_runners.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.engine import Ask, Engine, assert_exact, assert_same
from support.oracle import Oracle
from support.series import reading

pytestmark = pytest.mark.engine

MAX_TOKENS = 12
BLOCK = 32


def test_the_oracle_itself_is_moved_by_every_emotion(
    oracle: Oracle, mixed: list[Ask], text_of: Callable[[int, int], list[int]]
) -> None:
    reply = text_of(42, MAX_TOKENS)
    for ask in mixed:
        scores = [oracle.scores(each, reply)[len(ask.prompt) - 1 : -1] for each in (ask, Ask(ask.prompt))]
        steered, unsteered = (rows[range(len(reply)), reply].tolist() for rows in scores)
        moved = ask.fields.get("emotion_strength", 1.0) != 0 and "emotion" in ask.fields
        assert (steered == pytest.approx(unsteered, abs=0.02)) != moved, ask.fields


def test_a_mixed_batch_equals_the_oracle(steered_compiled: Engine, oracle: Oracle, mixed: list[Ask]) -> None:
    assert_exact(steered_compiled, oracle, reading(mixed), MAX_TOKENS)


def test_a_mixed_batch_in_eager_mode_equals_the_oracle(steered_eager: Engine, oracle: Oracle, mixed: list[Ask]) -> None:
    assert_exact(steered_eager, oracle, reading(mixed), MAX_TOKENS)


def test_the_next_turn_of_a_conversation_equals_the_oracle(
    steered_compiled: Engine, oracle: Oracle, text_of: Callable[[int, int], list[int]]
) -> None:
    first = [Ask(text_of(40, BLOCK * 2), fields) for fields in ({"emotion": "anger"}, {})]
    replies = steered_compiled.generate(first, BLOCK * 2)
    # What was said under one emotion is then the prompt of another: its cached blocks are not the prompt's.
    second = [
        Ask(ask.prompt + reply.tokens + text_of(41, 9), fields)
        for ask, reply in zip(first, replies, strict=True)
        for fields in ({"emotion": "anger"}, {"emotion": "fear"}, {})
    ]
    assert_exact(steered_compiled, oracle, second, MAX_TOKENS)


def test_plain_requests_are_bit_identical_in_eager_mode(
    plain_eager: Engine, steered_eager: Engine, mixed: list[Ask]
) -> None:
    plain = [
        Ask(ask.prompt, {} if number % 2 else {"emotion": "fear", "emotion_strength": 0})
        for number, ask in enumerate(mixed)
    ]
    assert_same(
        steered_eager.generate(plain, MAX_TOKENS),
        plain_eager.generate([Ask(ask.prompt) for ask in plain], MAX_TOKENS),
        tolerance=0,
    )


def test_a_steered_request_does_not_change_its_batch_neighbours(steered_eager: Engine, mixed: list[Ask]) -> None:
    neighbours = [Ask(ask.prompt) for ask in mixed[:6]]
    others = [ask.prompt for ask in mixed[6:12]]
    alone = steered_eager.generate(neighbours + [Ask(prompt) for prompt in others], MAX_TOKENS)
    beside = steered_eager.generate(
        neighbours + [Ask(prompt, {"emotion": "anger", "emotion_strength": 3}) for prompt in others], MAX_TOKENS
    )
    assert_same(beside[:6], alone[:6], tolerance=0)
    assert all(a.tokens != b.tokens for a, b in zip(beside[6:], alone[6:], strict=True))
