"""The stages of a build that make its circuit: asking the model, discovery, refinement."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from emovllm.errors import TooFewError
from emovllm_offline.building.costs import BATCH, REPLY_TOKENS, held_out, tried_styles
from emovllm_offline.building.folder import Build
from emovllm_offline.building.inputs import LEAST_MESSAGES
from emovllm_offline.building.obeyed import own_replies, to_learn
from emovllm_offline.building.parts import write_lines
from emovllm_offline.commands.discover import DiscoverOptions
from emovllm_offline.commands.elicit import ElicitOptions
from emovllm_offline.commands.refine import RefineOptions
from emovllm_offline.data import sev
from emovllm_offline.discovery.parameters import Parameters, Settings
from emovllm_offline.discovery.survival import MINIMUM, complete_groups
from emovllm_offline.refinement.settings import RefineSettings, Training


def elicit(build: Build) -> None:
    """Asks the model for every emotion in each style, on a few scenarios."""
    for name in tried_styles(build.sizes, build.counts):
        _ask(build, name, build.place / "elicit" / name, build.sizes.tried)
    for tried in build.tried():
        obeyed = ", ".join(tried.obeyed) or "no emotion"
        build.notes.append(f"style {tried.style}: {tried.mean:.0%} of the replies accepted, obeyed in {obeyed}")


def prompt(build: Build) -> None:
    """Asks it further in the style that it obeys best, for replies to learn from."""
    chosen = build.obeyed()
    if chosen is None:
        build.notes.append("the model obeys in no emotion: it learns from written replies")
        return
    _ask(build, chosen.style, build.place / "prompt", build.sizes.prompted)
    build.notes.append(f"asked in the style {chosen.style}, which it obeys best")


def discover(build: Build) -> None:
    """On what the model replied as it was asked, where it obeys in every emotion; else on all that is asked."""
    inputs, chosen, place = build.inputs, build.obeyed(), build.prompted()
    groups = len(complete_groups(build.replies()))
    accepted = chosen is not None and chosen.wholly and groups >= MINIMUM
    style = chosen.style if chosen is not None and accepted else inputs.forced.name
    asked = build.sizes.prompted if place == build.place / "prompt" else build.sizes.tried
    build.notes.append(
        f"in the style {style}, on {groups} scenario-events to which it replied in every emotion"
        if accepted
        else f"in the style {style}, whatever the model replies: it was not seen to obey in every emotion"
    )
    settings = Settings(
        data=inputs.learn(build.place),
        style=(inputs.sources[style],),
        limit=asked if accepted else build.sizes.found,
        loading=inputs.settings.loading,
        replies=place if accepted else None,
    )
    parameters = Parameters(importance=build.sizes.importance, importance_prompts=build.sizes.neutral)
    out = build.place / "discover" / "circuit"
    build.run("discover", DiscoverOptions(inputs.model, out=out, settings=settings, parameters=parameters))


def refine(build: Build) -> None:
    """Fits the circuit to the model's own replies where it obeys, and to written ones where not."""
    inputs, chosen, limit = build.inputs, build.obeyed(), build.sizes.learnt
    obeyed = chosen.obeyed if chosen else []
    items = sev.expand(inputs.parts.learn)
    own = own_replies(build.replies(), items)
    held = held_out(limit, build.counts)
    rows = to_learn(inputs.written, own, items, inputs.emotions, obeyed, limit, held)
    if len(rows) < LEAST_MESSAGES:
        build.notes.append(
            f"left out: {len(rows)} messages have a reply in every emotion, {LEAST_MESSAGES} are the least; --replies "
            "FILE gives written ones"
        )
        return
    told = f"the model's own replies in {', '.join(obeyed)} where they were accepted" if obeyed else "written replies"
    build.notes.append(f"{len(rows)} messages, held-out ones included: {told}")
    replies = build.place / "refine" / "replies.jsonl"
    write_lines(replies, [row.model_dump(exclude_defaults=True) for row in rows])
    fit(build, build.place / "discover" / "circuit", build.refined, replies, build.sizes.epochs)


def fit(build: Build, circuit: Path, out: Path, replies: Path, epochs: int) -> None:
    """`emovllm refine`, and whether it pays."""
    build.run(
        "refine",
        RefineOptions(
            build.inputs.model,
            circuit=str(circuit),
            out=out,
            training=Training(epochs=epochs),
            settings=RefineSettings(replies=str(replies), loading=build.inputs.settings.loading),
        ),
    )
    losses = build.refinement(out)
    assert losses is not None
    taken = "taken" if build.pays(out) else "not taken, it does not pay"
    build.notes.append(f"held-out replies at {losses[0]:.2f} nats per token before, {losses[1]:.2f} after: {taken}")


def _ask(build: Build, style: str, out: Path, scenarios: int) -> None:
    settings = build.inputs.settings
    options = ElicitOptions(
        build.inputs.model,
        data=build.inputs.learn(build.place),
        out=out,
        style=(build.inputs.sources[style],),
        judge=settings.judge[0],
        judging=settings.judging,
        minimum=1,
        max_new_tokens=REPLY_TOKENS,
        limit=scenarios,
        loading=settings.loading,
        batch_size=BATCH,
    )
    # That the model obeys too seldom is what was to be found.
    with suppress(TooFewError):
        build.run("elicit", options)
