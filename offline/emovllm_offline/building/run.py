"""`emovllm build`: a plan, every stage after the other, and what is written in the end."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from emovllm.circuit_files import load_circuit, save_circuit
from emovllm.errors import UnsupportedModelError
from emovllm.known_models import describe
from emovllm.models import public_model_id, resolve_model
from emovllm.probe import load_probe, save_probe
from emovllm_offline.building import making, measuring, told
from emovllm_offline.building.folder import Build
from emovllm_offline.building.found import Shown, advice, shown
from emovllm_offline.building.inputs import Inputs
from emovllm_offline.building.plan import FIELDS, Plan, make_plan, shorten
from emovllm_offline.building.plan import told as shortened
from emovllm_offline.building.settings import BuildSettings
from emovllm_offline.building.sizes import STAGES, Sizes, Stage
from emovllm_offline.building.speed import judging_seconds, measure
from emovllm_offline.building.state import Progress, State
from emovllm_offline.evaluation.results import Summary
from emovllm_offline.reporting.tables import Table
from emovllm_offline.storage.lock import forget
from emovllm_offline.storage.places import work_folder

DO: dict[Stage, Callable[[Build], None]] = {
    "elicit": making.elicit,
    "prompt": making.prompt,
    "discover": making.discover,
    "refine": making.refine,
    "probe": measuring.probe,
    "calibrate": measuring.calibrate,
    "again": measuring.again,
    "evaluate": measuring.evaluate,
}


def run(model: str, out: Path, settings: BuildSettings, *, command: str = "") -> list[Shown] | None:
    """Builds a circuit and writes it to `out`, or goes on where an interrupted build was.

    Returns: of each emotion how well it shows; None where only the plan was asked for.
    Raises: BuildError, UnsupportedModelError, StoredError where the work folder is of other settings; and as the
        commands of the stages do.
    """
    check(model)
    place = settings.work or work_folder(out)
    if settings.fresh:
        forget(place)
    if settings.effort is None and (begun := State.begun(place)) is not None:
        # Without, it goes by --minutes, which may change.
        settings = replace(settings, effort=begun.settings.get("effort"))
    inputs = Inputs.of(model, settings)
    about = inputs.describe(public_model_id(resolve_model(model)))
    state = State.load(place, about)
    # Of a build that has ended nothing is judged any more.
    judging = judging_seconds(inputs) if state is None or not state.ended else state.counts.judging
    if state is None:
        say("measuring how fast the model is here")
        speed, counts = measure(inputs, judging)
        plan = make_plan(settings.effort, settings.minutes, counts, speed)
        # Saved as the first stage is begun: a plan alone binds nothing.
        state = State(settings=about, speed=speed, counts=counts, sizes=plan.sizes, left_out=plan.left_out)
    else:
        state.counts = replace(state.counts, judging=judging)
        plan = left(state, settings)
    table_of(plan, state).print()
    for line in plan.left_out:
        print(f"for the time: {line}")
    if settings.plan:
        return None
    return go_on(Build(inputs, place, state.counts, state.sizes), state, out, command)


def check(model: str) -> None:
    """Tells what `emovllm models` does. Raises: UnsupportedModelError where discovery or the engine refuses the model;
    ModelError."""
    lines = [" ".join(line.split()) for line in describe(model).splitlines()]
    for line in lines:
        say(line)
    if refused := [line for line in lines if re.match(r"(\w+ )?refused\b", line)]:
        raise UnsupportedModelError(f"{model}: no circuit of it can be served: {'; '.join(refused)}")


def left(state: State, settings: BuildSettings) -> Plan:
    """The plan of what was not begun yet, within the minutes that are left."""
    counts, speed = state.counts, state.speed
    wanted = make_plan(settings.effort, None if settings.minutes is None else float("inf"), counts, speed)
    sizes = keep(wanted.sizes, state)
    minutes = None if settings.minutes is None else settings.minutes - state.spent
    plan = shorten(sizes, minutes, counts, speed, list(state.stages), state.slower)
    return replace(plan, left_out=shortened(wanted.sizes, plan.sizes))


def go_on(build: Build, state: State, out: Path, command: str) -> list[Shown]:
    """Every stage that is not done."""
    for stage in STAGES[:-1]:
        progress = state.stages.get(stage)
        if progress is not None and progress.done:
            continue
        plan = left(state, build.inputs.settings)
        planned = plan.of(stage)
        if planned is None and progress is None:
            continue
        state.sizes, build.sizes, state.left_out = plan.sizes, plan.sizes, plan.left_out
        minutes = planned.minutes if planned else 0.0
        of_it = "going on" if progress else f"about {minutes * state.slower:.0f} minutes"
        progress = progress or Progress(planned=minutes)
        state.stages[stage] = progress
        state.save(build.place)
        say(f"{stage}: {f'{planned.what}, ' if planned else ''}{of_it}")
        build.ran, build.notes = [], []
        begun = time.monotonic()
        try:
            DO[stage](build)
        finally:
            progress.minutes += (time.monotonic() - begun) / 60
            state.save(build.place)
        progress.done = True
        progress.commands, progress.notes = tuple(dict.fromkeys(build.ran)), tuple(build.notes)
        state.save(build.place)
        for note in build.notes:
            say(f"{stage}: {note}")
    return write(build, state, out, command)


def write(build: Build, state: State, out: Path, command: str) -> list[Shown]:
    """The circuit with its probe, its card and its page; and what is printed."""
    circuit = load_circuit(build.served)
    found, obeyed = shown(build), build.obeyed()
    story = told.Story(
        circuit,
        state,
        Summary.load(build.place / "evaluate" / "run"),
        found,
        {one.emotion: advice(one, build, obeyed) for one in found if not one.shows},
        command,
        build.place / "evaluate" / "run",
        build.probe is not None,
    )
    save_circuit(circuit, out)
    if build.probe is not None:
        save_probe(load_probe(build.probe), out)
    told.write(story, out)
    told.table(found, circuit).print()
    for one in story.failed:
        print(one.told())
        for line in story.advice[one.emotion]:
            print(f"  {line}")
    print(f"{out}: {story.said()} See {out / told.PAGE}")
    return found


def keep(sizes: Sizes, state: State) -> Sizes:
    """These sizes, but those of the stages that were begun as they were."""
    fields = [name for name, (stage, _) in FIELDS.items() if stage in state.stages]
    return replace(sizes, **{name: getattr(state.sizes, name) for name in fields})


def table_of(plan: Plan, state: State) -> Table:
    rows = []
    for planned in plan.stages:
        progress = state.stages.get(planned.stage)
        there = "" if progress is None else "done" if progress.done else "begun"
        rows.append([planned.stage, planned.what, f"{planned.minutes:.1f}", there])
    foot = [["in all", "", f"{plan.minutes:.0f}", ""]]
    return Table(["stage", "what", "about minutes", ""], rows, title="the plan", foot=foot)


def say(line: str) -> None:
    print(f"build: {line}", file=sys.stderr, flush=True)
