"""What a judge of the states needs, and a target: an engine that reads, and replies that were all read by one probe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from emovllm.errors import EvaluationError
from emovllm.probe import NAME, load_probe
from emovllm.readout import Reading
from emovllm_offline.endpoint.answer import FILTERED
from emovllm_offline.evaluation.folder import Folder
from emovllm_offline.evaluation.further import TARGET
from emovllm_offline.evaluation.plan import Served, Task, plain_name
from emovllm_offline.evaluation.target import Target, Where


def find_reading(where: Where, target: Target) -> Reading | None:
    """What replies will be read with; None where they are not to be. Raises: EvaluationError where nothing reads them;
    ProbeError."""
    if not (where.readout or where.targets):
        if where.probe is not None:
            raise EvaluationError("--probe is for the judge readout: add it to --judge")
        return None
    what = "--judge readout" if where.readout else TARGET
    if where.base_url is not None:
        if where.probe is not None:
            raise EvaluationError("--probe is for an engine that is started here: the server at --base-url has its own")
        return reading_served(target.served, what)
    assert target.circuit is not None
    if where.probe is None and not (target.circuit / NAME).is_file():
        raise EvaluationError(
            f"{what}: {target.circuit} holds no probe to read with: give --probe DIR (`emovllm probe train` makes one)"
        )
    trained = load_probe(where.probe or target.circuit)
    return Reading.of(trained.digest, trained.at(_layer(where.engine_args)))


def _layer(arguments: Sequence[str]) -> int | None:
    """The layer that the engine is told to read after, if any."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--readout-layer", "--readout_layer", default="")
    told = parser.parse_known_args(list(arguments))[0].readout_layer
    # What is no number, the engine refuses.
    return int(told) if told.isdecimal() else None


def reading_served(served: Served, what: str = "--judge readout") -> Reading:
    """What a server reads, for what needs it. Raises: EvaluationError where that is nothing."""
    if served.reading is None:
        raise EvaluationError(
            f"{what}: the server reads nothing: start it with --readout, where its circuit's folder holds a probe, or "
            "with --probe DIR"
        )
    return served.reading


def targets_go_by(emotions: Sequence[str], reading: Reading) -> dict[str, Any]:
    """What decides replies to a target, as evaluate.json holds it. Raises: EvaluationError where the probe has no label
    for an emotion, which no strength could then follow."""
    if lacking := [emotion for emotion in emotions if plain_name(emotion) not in reading.labels]:
        raise EvaluationError(
            f"{TARGET}: the probe has no label for {', '.join(lacking)}, only {', '.join(reading.labels)}: give "
            "another --probe, or a circuit of emotions that it has"
        )
    return {"probe": reading.probe, "layer": reading.layer}


def without_label(emotions: Sequence[str], reading: Reading) -> list[str]:
    """The emotions that the probe has no label for, told on stderr. Raises: EvaluationError where it has none."""
    lacking = [emotion for emotion in emotions if plain_name(emotion) not in reading.labels]
    if len(lacking) == len(emotions):
        raise EvaluationError(
            f"--judge readout: the probe has no label for any emotion of the circuit, only {', '.join(reading.labels)}"
        )
    if lacking:
        print(f"the probe has no label for {', '.join(lacking)}: the read-out does not judge them", file=sys.stderr)
    return lacking


def refuse_unread(planned: Sequence[Task], folder: Folder, reading: Reading) -> None:
    """Raises: EvaluationError where replies that the folder holds were not read, or not like this."""
    there = [folder.replies[task.key] for task in planned if task.key in folder.replies]
    remedy = "give --fresh, or another --out"
    for reply in there:
        if reply.finish_reason == FILTERED:
            continue
        if reply.readout is None:
            raise EvaluationError(f"{folder.path}: it holds replies that nobody read as they were written; {remedy}")
        if (reply.readout.probe, reply.readout.layer) != (reading.probe, reading.layer):
            raise EvaluationError(f"{folder.path}: its replies were read by another probe or layer; {remedy}")
