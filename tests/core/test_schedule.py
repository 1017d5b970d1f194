"""Schedules: what is asked for, and the share of the strength at each token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emovllm.schedule import MAX_POINTS, Schedule


@pytest.mark.parametrize(
    ("asked", "tokens", "shares"),
    [
        ({"hold": 3, "half_life": 2}, [0, 1, 2, 3, 4, 6, 2002], [1, 1, 1, 0.5**0.5, 0.5, 0.25, 0]),
        ({"half_life": 1}, [0, 1, 2], [1, 0.5, 0.25]),
        ({"hold": 1, "half_life": 1}, [0, 1, 2], [1, 0.5, 0.25]),
        ({"from": 2, "to": 4}, [0, 1, 2, 3, 4, 900], [0, 0, 1, 1, 0, 0]),
        ({"from": 2}, [0, 1, 2, 100_000], [0, 0, 1, 1]),
        ({"to": 2}, [0, 1, 2], [1, 1, 0]),
        ([[2, 0.5], [4, 1], [8, 0]], [0, 2, 3, 4, 6, 8, 50], [0.5, 0.5, 0.75, 1, 0.5, 0, 0]),
        ([[0, 0.25]], [0, 7], [0.25, 0.25]),
        # Before the reply it is as at its first token.
        ([[0, 0.5], [2, 1]], [-5, -1, 0, 1], [0.5, 0.5, 0.5, 0.75]),
    ],
)
def test_the_share_of_each_token(asked: Any, tokens: list[int], shares: list[float]) -> None:
    schedule = Schedule.read(asked)
    found = schedule.shares(np.array(tokens))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, shares, rtol=1e-6, atol=1e-30)
    again = Schedule.read(schedule.body())
    assert again == schedule


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("fading", "must be one of {"),
        (3, "must be one of {"),
        ({}, "must be one of {"),
        ({"hold": 3}, "must be one of {"),
        ({"from": 1, "half_life": 2}, "must be one of {"),
        ({"half_life": 0}, "must have a half_life above 0"),
        ({"half_life": float("nan")}, "must have a finite number as half_life"),
        ({"half_life": True}, "must have a finite number as half_life"),
        ({"hold": -1, "half_life": 4}, "0 or more, as hold"),
        ({"hold": 1.5, "half_life": 4}, "0 or more, as hold"),
        ({"from": 4, "to": 4}, "is empty: it goes from token 4 to before token 4"),
        ({"from": None}, "0 or more, as from"),
        ([], "must have from 1 to 64 points, and has 0"),
        ([[number, 1] for number in range(MAX_POINTS + 1)], "must have from 1 to 64 points, and has 65"),
        ([0, 1], "must be one of {"),
        (["ab"], "must be one of {"),
        ([[0, 1, 2]], "must be one of {"),
        ([[0, 1.5]], "must have shares from 0 to 1, got 1.5"),
        ([[0, -0.1]], "must have shares from 0 to 1"),
        ([[3, 1], [3, 0]], "in the order of their tokens"),
        ([["0", 1]], "0 or more, as a point's token"),
    ],
)
def test_what_is_no_schedule_is_refused(asked: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{", "\\{")):
        Schedule.read(asked)


def test_a_schedule_comes_back_from_another_process() -> None:
    for schedule in (None, Schedule(hold=3, half_life=2.5), Schedule(points=((0, 0.0), (8, 1.0)))):
        carried = None if schedule is None else [*schedule[:-1], [list(point) for point in schedule.points]]
        assert Schedule.carried(carried) == schedule
        assert Schedule.carried(schedule) is schedule
