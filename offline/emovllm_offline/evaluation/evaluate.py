"""One evaluation from its options to its files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import emovllm
from emovllm.files import write_json
from emovllm_offline.evaluation import generate, paper_way
from emovllm_offline.evaluation.felt import felt
from emovllm_offline.evaluation.folder import PAPER_WAY, Folder
from emovllm_offline.evaluation.further import has_target
from emovllm_offline.evaluation.plan import CIRCUITS, NONE, STEERING, Asked, Task, plain_name, plan, settings
from emovllm_offline.evaluation.readout import find_reading, refuse_unread, targets_go_by, without_label
from emovllm_offline.evaluation.results import Results, write
from emovllm_offline.evaluation.scoring import agreements, score, unjudged
from emovllm_offline.evaluation.summary import summarise
from emovllm_offline.evaluation.target import Target, Where, connection, find_target, serving
from emovllm_offline.judges.judge import Judge
from emovllm_offline.judges.readout import ReadoutJudge, ReplyJudge

MakeJudges = Callable[[Sequence[str]], list[Judge]]
MakeReplyJudges = Callable[[Sequence[str]], Sequence[ReplyJudge]]


def evaluate(
    where: Where,
    asked: Asked,
    make_judges: MakeReplyJudges,
    out: Path,
    *,
    seed: int = 0,
    paper_way_items: int = 0,
    fresh: bool = False,
    command: str = "",
) -> Results:
    """`emovllm evaluate`: asks, judges, measures, and writes summary.json, summary.md, page.html and scored.jsonl.

    paper_way_items: prompts on which the paper's way is timed; only with a local model.
    where.readout: set by whether one of the judges is a `ReadoutJudge`.
    Raises: EvaluationError, EndpointError, CircuitError, ProbeError, JudgeError, DefaultModelError, OSError.
    """
    target = find_target(where, STEERING in asked.methods)
    planned, emotions = plan(asked, target.served)
    # A judge that cannot be made fails before anything is asked.
    judges = make_judges(list(dict.fromkeys(map(plain_name, emotions))))
    reads = any(isinstance(judge, ReadoutJudge) for judge in judges)
    where = replace(where, readout=reads, targets=has_target(asked.further))
    found = find_reading(where, target)
    target_by = targets_go_by(emotions, found) if found is not None and where.targets else None
    reading = found if where.readout else None
    lacking = without_label(emotions, reading) if reading is not None else []
    decided = settings(asked, planned, target.served, target_by)
    folder = Folder(out, decided, fresh)
    if reading is not None:
        refuse_unread(planned, folder, reading)
    collect(where, target, planned, folder, asked.max_tokens, STEERING in asked.methods)
    if reading is not None:
        # The engine may have been told otherwise.
        refuse_unread(planned, folder, reading)
    speed = speeds(target, planned, folder, paper_way_items)
    scored = score(planned, folder, judges, emotions)
    names = [judge.name for judge in judges]
    cells = summarise(scored, emotions, names, seed)
    about = {
        **({"command": command} if command else {}),
        "emovllm": emovllm.__version__,
        "model": target.name,
        "circuit": target.served.circuit,
        "settings": decided,
        "seed": seed,
        "judges": {judge.name: dict(judge.config) for judge in judges},
        "speed": speed,
        "refused": list(dict.fromkeys(note for session in folder.sessions for note in session.notes)),
        "unjudged": unjudged(scored, names),
        "agreement": agreements(scored, names),
    }
    if reading is not None:
        about["readout"] = {**reading.body(), "without a label": lacking}
    results = Results(about, scored, cells, emotions, names, seed, felt(scored, emotions, names, seed))
    write(results, out)
    return results


def collect(
    where: Where, target: Target, planned: Sequence[Task], folder: Folder, max_tokens: int, steering: bool
) -> None:
    """Fills the folder with what it lacks; starts no server where it lacks nothing."""
    collect_replies(where, target, planned, folder, max_tokens, steering)
    # After the engine: the two would share the machine.
    if target.model is not None:
        generate.ask_model(planned, folder, target.model)
    elif where.base_url is not None and generate.questions(planned, folder):
        generate.ask_server(planned, folder, connection(where.base_url, where))


def collect_replies(
    where: Where, target: Target, planned: Sequence[Task], folder: Folder, max_tokens: int, steering: bool = False
) -> None:
    """The replies alone."""
    if generate.missing_replies(planned, folder):
        with serving(where, target, folder.path / "server.log", steering) as server:
            generate.run(planned, folder, server, max_tokens, target.served.circuit)


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
