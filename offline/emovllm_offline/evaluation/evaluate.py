"""One evaluation from its options to its files."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import emovllm
from emovllm.circuit_files import load_circuit, resolve_circuit
from emovllm.emotion import SCOPES
from emovllm.errors import CircuitError, EvaluationError
from emovllm.files import write_atomically, write_json
from emovllm.models import NAME, is_default, public_model_id, resolve_model, shipped_circuits
from emovllm_offline.data.messages import Message, messages_digest
from emovllm_offline.data.styles import Style
from emovllm_offline.evaluation import figures, generate, page, paper_way, tables
from emovllm_offline.evaluation.client import Connection, Served, connect
from emovllm_offline.evaluation.folder import PAPER_WAY, Folder
from emovllm_offline.evaluation.local_server import local_server
from emovllm_offline.evaluation.plan import (
    CIRCUITS,
    DECODING,
    METHODS,
    NONE,
    STEERING,
    WITH_STRENGTH,
    Task,
    plain_name,
    plan_digest,
    tasks,
)
from emovllm_offline.evaluation.scoring import Scored, agreements, score, unjudged
from emovllm_offline.evaluation.summary import ALL, Cell, summarise
from emovllm_offline.judges.judge import Judge
from emovllm_offline.judges.text import EXPLOSIVE, REPETITIVE
from emovllm_offline.reporting import plots
from emovllm_offline.reporting.page import render

SUMMARY = "summary.json"
TABLE = "summary.md"
PAGE = "page.html"
SCORED = "scored.jsonl"

MakeJudges = Callable[[Sequence[str]], list[Judge]]


@dataclass(frozen=True, slots=True)
class Where:
    """What generates: a server that runs already (base_url), or one of this machine.

    model, circuit: as on the command line; None for the default ones, or those of the server, whose names for them they
    are otherwise.
    """

    model: str | None = None
    circuit: str | None = None
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 64
    engine_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of it."""

    messages: Sequence[Message]
    style: Style
    methods: Sequence[str]
    strengths: Sequence[float]
    max_tokens: int
    scopes: Sequence[str] = ("",)


@dataclass(frozen=True, slots=True)
class Target:
    """What a `Where` turned out to be. model, circuit: local places; None behind a base_url."""

    served: Served
    model: str | None
    circuit: Path | None


def evaluate(
    where: Where,
    asked: Asked,
    make_judges: MakeJudges,
    out: Path,
    *,
    seed: int = 0,
    paper_way_items: int = 0,
    fresh: bool = False,
    command: str = "",
) -> list[Cell]:
    """`emovllm evaluate`: asks, judges, measures, and writes summary.json, summary.md, page.html and scored.jsonl.

    paper_way_items: prompts on which the paper's way is timed; only with a local model.
    Raises: EvaluationError, EndpointError, CircuitError, JudgeError, DefaultModelError, OSError.
    """
    target = find_target(where, STEERING in asked.methods)
    planned, emotions = plan(asked, target.served)
    # A judge that cannot be made fails before anything is asked.
    judges = make_judges(list(dict.fromkeys(map(plain_name, emotions))))
    folder = Folder(out, settings(asked, planned, target.served), fresh)
    collect(where, target, planned, folder, asked.max_tokens, STEERING in asked.methods)
    speed = speeds(target, planned, folder, paper_way_items)
    scored = score(planned, folder, judges, emotions)
    names = [judge.name for judge in judges]
    cells = summarise(scored, emotions, names, seed)
    about = {
        "command": command,
        "emovllm": emovllm.__version__,
        # A server's name for its model is often where it lies.
        "model": Path(target.served.model).name if target.model is None else public_model_id(target.model),
        "circuit": target.served.circuit,
        "settings": settings(asked, planned, target.served),
        "seed": seed,
        "judges": {judge.name: dict(judge.config) for judge in judges},
        "speed": speed,
        "refused": list(dict.fromkeys(note for session in folder.sessions for note in session.notes)),
        "unjudged": unjudged(scored, names),
        "agreement": agreements(scored, names),
    }
    write(out, about, scored, cells, emotions, names, seed)
    return cells


def find_target(where: Where, steering: bool) -> Target:
    """Raises: EvaluationError, EndpointError, CircuitError, DefaultModelError."""
    if where.base_url is not None:
        return Target(_describe(where.base_url, where), None, None)
    circuit = where.circuit or (str(shipped_circuits() / NAME) if is_default(where.model) else None)
    if circuit is None:
        raise CircuitError(
            f"no circuit for {where.model}: give --circuit, a folder or a Hugging Face repository id "
            "(`emovllm discover` makes one)"
        )
    place = resolve_circuit(circuit)
    loaded = load_circuit(place)
    if steering and not loaded.directions:
        raise EvaluationError(
            f"{place}: holds no directions, which steering needs: leave the method out, or make the circuit anew with "
            "`emovllm discover` (--stage circuit, where what was measured is still there)"
        )
    served = Served(
        "evaluated",
        loaded.digest(),
        {emotion.name: emotion.maximal / emotion.recommended for emotion in loaded.spec.emotions},
        ("circuit", "steering") if loaded.directions else ("circuit",),
    )
    return Target(served, resolve_model(where.model), place)


def _describe(base_url: str, where: Where) -> Served:
    import asyncio

    async def ask() -> Served:
        async with connect(_connection(base_url, where)) as client:
            return await client.describe()

    return asyncio.run(ask())


def _connection(base_url: str, where: Where) -> Connection:
    key = os.environ.get(where.key_variable) or "none"
    return Connection(base_url, where.model, key, where.circuit, where.concurrency)


def plan(asked: Asked, served: Served) -> tuple[list[Task], list[str]]:
    """The tasks, and the emotions in the server's order. Raises: EvaluationError."""
    if unknown := [method for method in asked.methods if method not in METHODS]:
        raise EvaluationError(f"no method {', '.join(unknown)}: choose from {', '.join(METHODS)}")
    if odd := [scope for scope in asked.scopes if scope not in ("", *SCOPES)]:
        raise EvaluationError(f"no scope {', '.join(odd)}: choose from {', '.join(SCOPES)}")
    if not asked.messages:
        raise EvaluationError("there are no messages to evaluate on")
    emotions = list(served.strengths)
    if lacking := [name for name in emotions if plain_name(name) not in asked.style.emotions]:
        raise EvaluationError(f"the style {asked.style.name} has no prompt for {', '.join(lacking)}")
    if STEERING in asked.methods and "steering" not in served.methods:
        raise EvaluationError(
            'the server was not started with steering (additional_config {"emovllm": {"steering": true}}): '
            "leave the method out"
        )
    if any(method in WITH_STRENGTH and method != STEERING for method in asked.methods):
        for name, most in served.strengths.items():
            if over := [f"{strength:g}" for strength in asked.strengths if abs(strength) > most * (1 + 1e-9)]:
                raise EvaluationError(f"strength {', '.join(over)} is over the circuit's maximum for {name}, {most:g}")
    planned = tasks(asked.messages, emotions, asked.style, asked.methods, asked.strengths, asked.scopes)
    if len({task.key for task in planned}) < len(planned):
        raise EvaluationError("a method, a strength or a message is named twice")
    return planned, emotions


def settings(asked: Asked, planned: Sequence[Task], served: Served) -> dict[str, Any]:
    """What decides the replies, as evaluate.json holds it. It has no keys, URLs or places of files."""
    return {
        "circuit": served.circuit,
        "emotions": list(served.strengths),
        "methods": list(asked.methods),
        "strengths": list(asked.strengths),
        "scopes": list(asked.scopes),
        "messages": {"sha256": messages_digest(asked.messages), "count": len(asked.messages)},
        "style": {"name": asked.style.name, "sha256": asked.style.digest()},
        "decoding": {**DECODING, "max_tokens": asked.max_tokens},
        "requests": plan_digest(planned),
    }


def collect(
    where: Where, target: Target, planned: Sequence[Task], folder: Folder, max_tokens: int, steering: bool
) -> None:
    """Fills the folder with what it lacks; starts no server where it lacks nothing."""
    if generate.missing_replies(planned, folder):
        with _server(where, target, folder, steering) as connection:
            generate.run(planned, folder, connection, max_tokens, target.served.circuit)
    # After the engine: the two would share the machine.
    if target.model is not None:
        generate.ask_model(planned, folder, target.model)
    elif where.base_url is not None and generate.questions(planned, folder):
        generate.ask_server(planned, folder, _connection(where.base_url, where))


@contextlib.contextmanager
def _server(where: Where, target: Target, folder: Folder, steering: bool) -> Iterator[Connection]:
    if target.model is None or target.circuit is None:
        assert where.base_url is not None
        yield _connection(where.base_url, where)
        return
    print("starting the engine", file=sys.stderr, flush=True)
    with local_server(
        target.model,
        target.circuit,
        folder.path / "server.log",
        steering=steering,
        concurrency=where.concurrency,
        engine_args=where.engine_args,
    ) as connection:
        yield connection


def speeds(target: Target, planned: Sequence[Task], folder: Folder, items: int) -> dict[str, Any]:
    """How fast replies came, and the paper's way on a few of the same prompts; kept in the folder."""
    path = folder.path / PAPER_WAY
    speed: dict[str, Any] = {
        phase: told for phase in ("replies", "perplexity") if (told := generate.throughput(folder.sessions, phase))
    }
    if items and target.model is not None and target.circuit is not None and not path.exists():
        chosen = [task for task in planned if task.key.method == CIRCUITS] or [
            task for task in planned if task.key.method != NONE
        ]
        if chosen:
            lengths = [len(folder.replies[task.key].tokens) for task in chosen]
            prompts = list(dict.fromkeys(folder.replies[task.key].prompt for task in chosen))[:items]
            length = max(8, round(sum(lengths) / len(lengths)))
            print("timing the paper's way", file=sys.stderr, flush=True)
            measured = paper_way.measure(target.model, target.circuit, prompts, chosen[0].key.emotion, length)
            write_json(path, measured)
    if path.exists():
        speed["paper_way"] = json.loads(path.read_text())
        if "replies" in speed:
            speed["times_the_paper_way"] = speed["replies"]["tokens_per_s"] / speed["paper_way"]["tokens_per_s"]
    return speed


def write(
    out: Path,
    about: dict[str, Any],
    scored: Sequence[Scored],
    cells: Sequence[Cell],
    emotions: Sequence[str],
    judges: Sequence[str],
    seed: int,
) -> None:
    """Every file of the results, each whole or not at all."""
    lines = "".join(json.dumps(reply.to_json(), ensure_ascii=False) + "\n" for reply in scored)
    write_atomically(out / SCORED, lines.encode())
    content = {**about, "cells": [{**asdict(cell), "condition": cell.condition._asdict()} for cell in cells]}
    write_json(out / SUMMARY, content)
    write_atomically(out / TABLE, as_markdown(about, cells, emotions, judges).encode())
    write_atomically(out / PAGE, as_page(about, scored, cells, emotions, judges, seed).encode())


def as_markdown(about: dict[str, Any], cells: Sequence[Cell], emotions: Sequence[str], judges: Sequence[str]) -> str:
    parts = [f"# Evaluation of {about['model']}", tables.overview(cells, judges).markdown(), _LEGEND]
    for judge in judges:
        parts += [f"Accuracy by emotion, judge {judge}:", tables.by_emotion(cells, judge, emotions).markdown()]
        if valence := tables.by_valence(cells, judge):
            parts += [f"Accuracy by the message's valence, judge {judge}:", valence.markdown()]
    parts += [
        "Fluency (median ratio) and repetition, by emotion:",
        tables.fluency_by_emotion(cells, emotions).markdown(),
        *about["refused"],
        *_said_of_unjudged(about["unjudged"], cells),
        *_said_of_speed(about["speed"]),
    ]
    for pair in about["agreement"]:
        kappa = "undefined" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
        parts.append(
            f"Judges {' and '.join(pair['judges'])} agree on {pair['observed']:.0%} of {pair['count']} replies "
            f"(by {pair['on']}), Cohen's kappa {kappa}."
        )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def as_page(
    about: dict[str, Any],
    scored: Sequence[Scored],
    cells: Sequence[Cell],
    emotions: Sequence[str],
    judges: Sequence[str],
    seed: int,
) -> str:
    section = page.Section
    parts = [section("Methods", _LEGEND, tables.overview(cells, judges))]
    for judge in judges:
        image = plots.data_uri(plots.png(figures.accuracy_by_emotion(cells, judge, emotions)))
        parts.append(
            section(
                f"Accuracy by emotion, judge {judge}",
                "With 95% intervals (Wilson).",
                tables.by_emotion(cells, judge, emotions),
                image,
            )
        )
        if valence := tables.by_valence(cells, judge):
            parts.append(section(f"Accuracy by the message's valence, judge {judge}", "Over all emotions.", valence))
        parts.append(
            section(
                f"What it costs, judge {judge}",
                "Each point: a method at a strength, over all emotions.",
                None,
                plots.data_uri(plots.png(figures.frontier(cells, judge))),
            )
        )
    parts.append(
        section(
            "Fluency and repetition by emotion",
            "Median ratio, and mean share of repeated 3-grams.",
            tables.fluency_by_emotion(cells, emotions),
        )
    )
    if missing := _said_of_unjudged(about["unjudged"], cells):
        parts.append(section("Replies that were not judged", " ".join(missing)))
    parts.append(section("Speed", " ".join(_said_of_speed(about["speed"]))))
    parts.append(page.samples(scored, judges[0], seed))
    parts.append(
        section("Provenance", "", page.facts({k: v for k, v in about.items() if k not in ("agreement", "unjudged")}))
    )
    return render("evaluation.j2", title=f"Evaluation of {about['model']}", sections=parts)


_LEGEND = (
    "Every method is decoded alike: greedy, up to the same number of tokens. In brackets: 95% intervals (Wilson's for "
    "shares, bootstrap over replies otherwise). Accuracy of `none` is the share of false positives: unsteered replies "
    "that the judge takes for an emotion, averaged over the emotions. Perplexity: of the reply under the unsteered "
    "model given the neutral prompt, over that of the message's own unsteered reply (median); emotional text is "
    "unlikely there by nature. Fluency: the same given the prompt that asks for the emotion, over that of the prompted "
    "reply (median); 1 is as fluent as prompting. Repetition: share of token 3-grams that occurred before in the "
    "reply. Longest run: tokens in the longest stretch that repeats one phrase over and over. Cut: at the token limit. "
    "Leak: a letter that is not Latin. Relevance: cosine of the embeddings of reply and message. Regimes: repetitive "
    f"(repetition of {REPETITIVE:g} or more), explosive (else, fluency above {EXPLOSIVE:g}), surgical (the rest)."
)


def _said_of_unjudged(unjudged: dict[str, dict[str, Any]], cells: Sequence[Cell]) -> list[str]:
    replies = sum(cell.replies for cell in cells if (cell.emotion, cell.valence) == (ALL, ALL))
    return [
        f"The judge {judge} could not judge {missing['replies']} of {replies} replies; its accuracies are over the "
        f"others. The first reason: {missing['first_reason']}"
        for judge, missing in unjudged.items()
    ]


def _said_of_speed(speed: dict[str, Any]) -> list[str]:
    said = []
    if replies := speed.get("replies"):
        said.append(
            f"Replies: {replies['requests_per_s']:.2f}/s, {replies['tokens_per_s']:.0f} tokens/s, "
            f"{replies['utilisation']:.0%} of the allowed requests in flight."
        )
    if scoring := speed.get("perplexity"):
        said.append(f"Perplexities: {scoring['requests_per_s']:.1f}/s, {scoring['tokens_per_s']:.0f} tokens/s.")
    if paper := speed.get("paper_way"):
        said.append(
            f"The paper's way (Hugging Face generate with hooks, one prompt at a time, {paper['requests']} of the same "
            f"prompts, {paper['threads']} threads): {paper['tokens_per_s']:.1f} tokens/s."
        )
    if times := speed.get("times_the_paper_way"):
        said.append(f"That is {times:.1f} times the paper's way.")
    return said
