"""What schedules give, looked up, against what they give when they are asked."""

from __future__ import annotations

import numpy as np
import pytest

from emovllm.engine.shares import AHEAD, BEHIND, Shares
from emovllm.schedule import Schedule

SCHEDULES = [
    Schedule(hold=3, half_life=200),
    Schedule(start=5, end=AHEAD + 9),
    Schedule(points=((0, 1.0), (3 * AHEAD, 0.25))),
]


def shares(slots: int = len(SCHEDULES)) -> Shares:
    made = Shares(slots)
    for slot, schedule in enumerate(SCHEDULES):
        made.join(slot, schedule)
    return made


def check(made: Shares, slots: list[int], tokens: list[int]) -> None:
    wanted = [SCHEDULES[slot].shares(np.array([token]))[0] for slot, token in zip(slots, tokens, strict=True)]
    found = made.of(np.array(slots), np.array(tokens))
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == np.float32


def test_a_token_at_a_time() -> None:
    made = shares()
    for token in range(3 * AHEAD):
        check(made, [2, 0, 1], [token, token + 1, 2 * token])


def test_prompts_and_long_chunks() -> None:
    made = shares()
    check(made, [0] * 9 + [1], [*range(-4, 5), -1])
    check(made, [1] * 500 + [2], [*range(500), 7])
    check(made, [0, 1, 2], [5, 500, 8])


@pytest.mark.parametrize("back", [1, BEHIND, AHEAD, 2 * AHEAD])
def test_going_back_as_after_rejected_drafts_and_preemptions(back: int) -> None:
    made = shares()
    for token in (0, AHEAD - 1, AHEAD, 3 * AHEAD - 1, 3 * AHEAD):
        check(made, [0, 2], [token, token])
        check(made, [0, 2], [max(token - back, 0), token + 1])


def test_slots_are_taken_anew_and_become_more() -> None:
    made = shares()
    check(made, [0], [2 * AHEAD])
    made.join(0, SCHEDULES[0])
    check(made, [0], [0])
    made.join(1, None)
    assert made.scheduled.tolist() == [True, False, True]
    made.grow()
    assert made.scheduled.tolist() == [True, False, True, False, False, False]
    check(made, [0, 2], [1, 1])
