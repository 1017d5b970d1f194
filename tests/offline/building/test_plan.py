"""What is done in how many minutes: arithmetic on speeds and counts that are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from emovllm.errors import BuildError
from emovllm_offline.building.costs import Planned, estimates
from emovllm_offline.building.plan import Plan, make_plan, shorten
from emovllm_offline.building.sizes import EFFORTS, LEAST, STAGES, Counts, Sizes, Speed

# A model of 135 million parameters on two cores, and one of half a billion.
SMALL = Speed(load=3.0, token=0.0013, step=0.06, layers=30, hidden=576)
LARGER = Speed(load=5.0, token=0.0045, step=0.2, layers=24, hidden=896)
COUNTS = Counts(
    emotions=6,
    prompts={"paper": 90, "fewshot": 250, "role": 90},
    replies={"paper": 1, "fewshot": 1, "role": 1},
    forced=280,
    message=75,
    reply=40,
    learn=120,
    choose=40,
    test=160,
    written=168,
    held=40,
    texts=1456,
)


def stages(plan: Plan) -> list[str]:
    return [planned.stage for planned in plan.stages]


def test_by_default_the_default_model_takes_less_than_45_minutes_and_a_larger_one_quickly_less_than_60() -> None:
    normal = make_plan(None, None, COUNTS, SMALL)
    assert normal.sizes == EFFORTS["normal"]
    assert 15 < normal.minutes < 45
    assert 15 < make_plan("quick", None, COUNTS, LARGER).minutes < 60
    assert stages(normal) == [stage for stage in STAGES if stage != "again"]
    assert "again" in stages(make_plan("thorough", None, COUNTS, SMALL))


def test_efforts_cost_more_one_after_the_other() -> None:
    minutes = [make_plan(effort, None, COUNTS, SMALL).minutes for effort in ("quick", "normal", "thorough")]
    assert minutes == sorted(minutes)
    assert minutes[0] < minutes[1] / 1.5 < minutes[2] / 4


@pytest.mark.parametrize("minutes", [12, 20, 30, 60, 120, 1000])
def test_a_plan_stays_within_its_minutes_and_takes_what_it_can(minutes: float) -> None:
    plan = make_plan(None, minutes, COUNTS, SMALL)
    assert plan.minutes <= minutes
    # With nothing to save it is the whole; with something, it says what.
    whole = make_plan("thorough", None, COUNTS, SMALL)
    assert (plan == whole) == (not plan.left_out) == (whole.minutes <= minutes)


def test_more_minutes_never_do_less() -> None:
    plans = [make_plan(None, minutes, COUNTS, SMALL) for minutes in range(12, 130, 7)]
    for less, more in pairwise(plans):
        assert less.minutes <= more.minutes
        assert less.sizes.learnt <= more.sizes.learnt
        assert less.sizes.tested <= more.sizes.tested


def test_an_effort_is_the_most_that_is_done_however_many_minutes_there_are() -> None:
    assert make_plan("quick", 1000, COUNTS, SMALL) == make_plan("quick", None, COUNTS, SMALL)


def test_what_is_least_missed_goes_first() -> None:
    whole = make_plan("thorough", None, COUNTS, SMALL)
    less = make_plan(None, whole.minutes - 1, COUNTS, SMALL)
    assert stages(less) == [stage for stage in stages(whole) if stage != "again"]
    assert less.left_out == ("rounds with the model's own replies under the circuit: 0 instead of 1",)
    assert less.sizes == replace(whole.sizes, again=0)
    least = estimates(LEAST, COUNTS, SMALL)
    bare = make_plan(None, sum(planned.minutes for planned in least), COUNTS, SMALL)
    assert stages(bare) == ["elicit", "discover", "calibrate", "evaluate", "write"]
    assert "messages of the refinement: 0 instead of 168" in bare.left_out
    assert "strengths tried: 3 instead of 8" in bare.left_out


def test_too_few_minutes_are_refused_with_how_many_it_takes() -> None:
    told = r"--minutes 1: on this machine the least .* takes about \d+ minutes: .* If the machine was busy while"
    with pytest.raises(BuildError, match=told):
        make_plan("thorough", 1, COUNTS, SMALL)


def test_what_was_begun_keeps_its_sizes_when_the_time_runs_out() -> None:
    sizes = EFFORTS["normal"]
    begun = ("elicit", "prompt", "discover")
    plan = shorten(sizes, 12, COUNTS, SMALL, begun)
    left = [planned.minutes for planned in plan.stages if planned.stage not in begun]
    assert 0 < sum(left) <= 12
    assert plan.left_out
    kept = ("tried", "styles", "prompted", "found", "importance", "neutral")
    assert [getattr(plan.sizes, name) for name in kept] == [getattr(sizes, name) for name in kept]
    # Twice as slow as it was thought, half as much fits.
    slower = shorten(sizes, 12, COUNTS, SMALL, begun, slower=2.0)
    assert sum(planned.minutes for planned in slower.stages if planned.stage not in begun) <= 6


def test_out_of_time_the_least_is_still_done() -> None:
    plan = shorten(EFFORTS["normal"], -5, COUNTS, SMALL, ("elicit", "prompt", "discover"))
    assert stages(plan)[-3:] == ["calibrate", "evaluate", "write"]
    assert "refine" not in stages(plan)
    assert plan.sizes.tested == LEAST.tested


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"prompts": {}, "replies": {}}, {"elicit", "prompt"}),
        ({"written": 0, "prompts": {}, "replies": {}}, {"elicit", "prompt", "refine", "again"}),
        ({"texts": 0}, {"probe"}),
        ({"again": False}, {"again"}),
    ],
)
def test_stages_without_anything_to_work_on_are_not_planned(changes: dict[str, object], missing: set[str]) -> None:
    plan = make_plan("thorough", None, replace(COUNTS, **changes), SMALL)  # type: ignore[arg-type]
    assert set(STAGES) - set(stages(plan)) == missing


def test_estimates_grow_with_what_is_done_and_with_what_a_token_costs() -> None:
    def minutes(sizes: Sizes, speed: Speed) -> dict[str, float]:
        return {planned.stage: planned.minutes for planned in estimates(sizes, COUNTS, speed)}

    usual = minutes(EFFORTS["normal"], SMALL)
    assert minutes(replace(EFFORTS["normal"], epochs=6), SMALL)["refine"] > 1.7 * usual["refine"]
    assert minutes(replace(EFFORTS["normal"], found=80), SMALL)["discover"] > 1.7 * usual["discover"]
    slow = minutes(EFFORTS["normal"], replace(SMALL, token=10 * SMALL.token))
    assert all(slow[stage] > usual[stage] for stage in usual if stage != "write")
    # For the circuit that is shipped, discovery took 4 min 8 s, and four passes of refinement 20 minutes on one core.
    assert usual["discover"] == pytest.approx(4.6, abs=1)
    assert 6 < usual["refine"] < 20


def test_each_further_judge_takes_its_time_in_the_evaluation_alone() -> None:
    sizes = EFFORTS["normal"]
    one, quick, slow = (
        estimates(sizes, replace(COUNTS, judging=judging), SMALL) for judging in ((0.0,), (0.0, 0.0, 0.0), (0.0, 7.0))
    )
    for several in (quick, slow):
        assert [row.stage for row in one if row not in several] == ["evaluate"]
    assert 0 < minutes_of(quick) - minutes_of(one) < 2
    replies = sizes.tested * (1 + 2 * COUNTS.emotions)
    assert minutes_of(slow) - minutes_of(one) == pytest.approx(7 * replies / 60, rel=0.05)


def test_the_judge_that_chooses_takes_its_time_wherever_replies_are_judged() -> None:
    quick, slow = (estimates(EFFORTS["thorough"], replace(COUNTS, judging=(of,)), SMALL) for of in (0.0, 7.0))
    slower = {of.stage for before, of in zip(quick, slow, strict=True) if of.minutes > before.minutes}
    assert slower == {"elicit", "prompt", "calibrate", "again", "evaluate"}
    # What is planned in a given time is less, then.
    counts = replace(COUNTS, judging=(7.0,))
    assert make_plan("normal", 60, counts, SMALL).sizes.chosen < make_plan("normal", 60, COUNTS, SMALL).sizes.chosen


def minutes_of(planned: Sequence[Planned]) -> float:
    return sum(of.minutes for of in planned)
