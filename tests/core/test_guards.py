"""Guards: how they are written, and at which token they act."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emovllm.errors import EmotionError
from emovllm.guards import Acted, Guard, Watch, check_guards
from emovllm.policy import Policy

LABELS = ("anger", "fear", "neutral")


def logits(*anger: float) -> np.ndarray:
    """Of tokens that read as anger with these probabilities, and otherwise as neutral."""
    rows = np.array([[chance, 1e-9, 1 - chance] for chance in anger], np.float64)
    return np.log(rows).astype(np.float32)


def watch(*texts: str) -> Watch:
    return Watch([Guard.parse(text) for text in texts], LABELS)


@pytest.mark.parametrize(
    ("text", "guard"),
    [
        ("anger>0.9:flag", Guard("anger", 0.9, 4, "flag")),
        ("anger>0.9x1:stop", Guard("anger", 0.9, 1, "stop")),
        (" low_mood > .25 x 12 : flag ", Guard("low_mood", 0.25, 12, "flag")),
        ("anger>1e-3:flag", Guard("anger", 0.001, 4, "flag")),
    ],
)
def test_what_is_written(text: str, guard: Guard) -> None:
    assert Guard.parse(text) == guard
    assert Guard.parse(str(guard)) == guard
    assert Guard.parse(guard) is guard


def test_a_name_says_at_what_it_acts() -> None:
    guard = Guard.parse("anger>0.90:stop")
    assert (guard.name, str(guard), guard.reason) == ("anger>0.9x4", "anger>0.9x4:stop", "emotion_guard: anger>0.9x4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("anger", "is written LABEL>BOUND"),
        ("anger>0.9", "is written LABEL>BOUND"),
        ("anger<0.9:flag", "is written LABEL>BOUND"),
        ("anger>0.9x-1:flag", "is written LABEL>BOUND"),
        ("anger>nan:flag", "is written LABEL>BOUND"),
        ("Anger>0.9:flag", "is written LABEL>BOUND"),
        (7, "is written LABEL>BOUND"),
        ("anger>0.9:soothe", "soothe is none of flag, stop, calm"),
        ("anger>0.9.1:flag", "0.9.1 is no number"),
        ("anger>1:flag", "between 0 and 1, both excluded"),
        ("anger>0.0:flag", "between 0 and 1, both excluded"),
        ("anger>0.9x0:flag", "its tokens are 1 to 4096"),
        ("anger>0.9x5000:flag", "its tokens are 1 to 4096"),
    ],
)
def test_nonsense_is_told(text: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guard.parse(text)
    with pytest.raises(ValueError, match=message):
        Policy(guards=[text])


def test_a_policy_holds_them_and_is_read_again() -> None:
    policy = Policy(guards=["anger>0.9:flag", "fear>0.5x2:stop"])  # type: ignore[arg-type]
    assert policy.model_dump()["guards"] == ["anger>0.9x4:flag", "fear>0.5x2:stop"]
    assert Policy.model_validate_json(policy.model_dump_json()) == policy
    with pytest.raises(ValueError, match="guards are a list"):
        Policy(guards="anger>0.9:flag")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["anger>0.9:flag"], None, "needs a read-out: add --readout, or --probe DIR"),
        (["anger>0.9:flag", "joy>0.9:flag"], LABELS, "no label joy; it reads anger, fear, neutral"),
        (["anger>0.9:flag", "anger>0.90x4:stop"], LABELS, "anger>0.9x4 is given twice"),
    ],
)
def test_what_an_engine_cannot_keep(texts: list[str], labels: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(EmotionError, match=message):
        check_guards([Guard.parse(text) for text in texts], labels)


def test_several_of_a_label_may_differ() -> None:
    check_guards([Guard.parse(text) for text in ("anger>0.5:flag", "anger>0.9:stop", "anger>0.9x9:stop")], LABELS)
    check_guards([], None)


CHANCES = (0.9, 0.9, 0.2, 0.9, 0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9)


@pytest.mark.parametrize("sizes", [[11], [1] * 11, [5, 6], [4, 1, 3, 3], [2, 4, 5]])
def test_as_many_tokens_in_a_row_however_they_come(sizes: list[int]) -> None:
    seen = watch("anger>0.5x3:flag", "anger>0.5x5:flag", "fear>0.5x1:stop")
    rows = logits(*CHANCES)
    for size in sizes:
        seen.see(seen.over(rows[:size]))
        rows = rows[size:]
    # Once, though there are three in a row again.
    assert seen.acted(11) == [Acted(Guard.parse("anger>0.5x3:flag"), 5)]
    assert seen.ended is None
    assert seen.acted(5) == []


def test_the_bound_itself_is_not_above_it() -> None:
    seen = watch("anger>0.5x1:flag")
    seen.see(seen.over(np.array([[0.0, -np.inf, 0.0]], np.float32)))
    assert seen.acted(1) == []
    seen.see(seen.over(logits(0.51)))
    assert seen.acted(2)[0].token == 1


def test_nothing_acts_after_the_token_that_ended_a_reply() -> None:
    seen = watch("anger>0.5x2:stop", "anger>0.5x3:flag", "anger>0.6x2:flag")
    seen.see(seen.over(logits(0.1, 0.9, 0.9, 0.9)))
    assert seen.ended == Acted(Guard.parse("anger>0.5x2:stop"), 2)
    # What acts with the same token is told.
    assert [acted.body() for acted in seen.acted(4)] == [
        {"guard": "anger>0.5x2", "action": "stop", "token": 2},
        {"guard": "anger>0.6x2", "action": "flag", "token": 2},
    ]
    seen.see(seen.over(logits(0.9, 0.9)))
    assert len(seen.acted(9)) == 2
