"""What an interrupted build goes on from, and what it still does in the time that is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from emovllm.errors import StoredError
from emovllm_offline.building.plan import make_plan
from emovllm_offline.building.run import left
from emovllm_offline.building.settings import BuildSettings
from emovllm_offline.building.sizes import EFFORTS, LEAST, Effort, effort_of
from emovllm_offline.building.state import Progress, State
from offline.building.test_plan import COUNTS, SMALL


def state(effort: Effort, taken: float = 0.0) -> State:
    """Of a build that has asked and discovered, which took so many times what was planned."""
    plan = make_plan(effort, None, COUNTS, SMALL)
    made = State(settings={"model": "m"}, speed=SMALL, counts=COUNTS, sizes=plan.sizes)
    for planned in plan.stages[:3] if taken else ():
        made.stages[planned.stage] = Progress(planned=planned.minutes, done=True, minutes=taken * planned.minutes)
    return made


def test_it_is_read_as_it_was_saved_and_refused_with_other_settings(tmp_path: Path) -> None:
    made = state("quick", 1.5)
    assert State.load(tmp_path, {"model": "m"}) is None
    made.save(tmp_path)
    assert State.load(tmp_path, {"model": "m"}) == made
    with pytest.raises(StoredError, match=r"made with other settings: model; give .* to go on, or give .* --work$"):
        State.load(tmp_path, {"model": "another"})


def test_another_effort_is_refused(tmp_path: Path) -> None:
    made = state("normal", 1.0)
    made.settings["effort"] = "normal"
    made.save(tmp_path)
    with pytest.raises(StoredError, match="other settings: effort; "):
        State.load(tmp_path, {"model": "m", "effort": "thorough"})


def test_where_no_stage_was_begun_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    state("quick").save(tmp_path)
    assert State.load(tmp_path, {"model": "m"}) is None
    assert State.load(tmp_path, {"model": "another"}) is None


@pytest.mark.parametrize(
    ("given", "minutes", "effort"),
    [(None, None, "normal"), (None, 30, "thorough"), ("quick", 30, "quick"), ("normal", None, "normal")],
)
def test_an_effort_that_is_not_given_is_the_default(
    given: Effort | None, minutes: float | None, effort: Effort
) -> None:
    assert effort_of(given, minutes) == effort
    assert make_plan(given, minutes and 1000, COUNTS, SMALL).sizes == EFFORTS[effort]


def test_a_build_on_time_does_what_was_planned() -> None:
    settings = BuildSettings(effort="normal")
    assert left(state("normal", 1.0), settings).sizes == EFFORTS["normal"]
    # However long it took, nobody said how long it may.
    assert left(state("normal", 9.0), settings).sizes == EFFORTS["normal"]


def test_minutes_that_are_used_up_shorten_what_is_left_and_say_so() -> None:
    settings = BuildSettings(effort="normal", minutes=40)
    on_time, late, out = (left(state("normal", taken), settings) for taken in (1.0, 1.5, 9.0))
    assert on_time.sizes == EFFORTS["normal"]
    assert late.left_out
    assert LEAST.learnt < late.sizes.learnt <= EFFORTS["normal"].learnt
    assert (out.sizes.learnt, out.sizes.tested) == (LEAST.learnt, LEAST.tested)
    assert "messages of the refinement: 0 instead of 168" in out.left_out
    # Nor did what was shortened before it was begun go untold.
    early = state("quick", 1.0)
    early.sizes = replace(early.sizes, found=5)
    assert left(early, BuildSettings(effort="quick")).left_out == ("scenarios of the discovery: 5 instead of 10",)
    # What was done on so many scenarios was.
    assert {plan.sizes.found for plan in (on_time, late, out)} == {EFFORTS["normal"].found}


def test_what_was_done_faster_promises_nothing() -> None:
    assert state("normal", 0.5).slower == 1.0
    assert state("normal", 1.5).slower == pytest.approx(1.5)
    assert state("normal").spent == 0


def test_the_time_of_a_stage_that_was_interrupted_is_spent() -> None:
    made = state("normal", 1.5)
    spent, slower = made.spent, made.slower
    made.stages["refine"] = Progress(planned=4.0, minutes=30.0)
    assert (made.spent, made.slower) == (spent + 30.0, slower)
