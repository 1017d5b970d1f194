"""One run of the steps: its folder, what each step needs of it, and what became of each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import commands, shapes
from benchmarks.gpu.commands import StepFailed, TimeLimit
from benchmarks.gpu.memory import Room, room
from benchmarks.gpu.plan import Plan
from emovllm.files import write_json

# Less is not worth starting an engine for.
_LEAST_S = 30
DONE, FAILED, CUT = "done", "failed", "cut short"


@dataclass(frozen=True)
class Run:
    """folder: of the whole. machine: as `machine.describe` says."""

    folder: Path
    plan: Plan
    machine: dict[str, Any]

    @property
    def on_gpu(self) -> bool:
        return self.machine["device"] != "cpu"

    def model(self, shape: str, emotions: Sequence[int] = (shapes.EMOTIONS,), weights: bool = False) -> Path:
        """The folder of a shape's `model` and of its `circuit-N` of each number of emotions. Raises: StepFailed."""
        folder = self.folder / "models" / (f"{shape}-weights" if weights else shape)
        missing = [str(number) for number in emotions if not (folder / f"circuit-{number}" / "circuit.json").exists()]
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            words = ["-m", "benchmarks.gpu.shapes", shape, str(folder), "--device", self.machine["device"]]
            words += [*(["--weights"] if weights else []), "--emotions", *missing]
            log = folder / "log"
            if commands.run(words, folder / "out", log):
                raise StepFailed(commands.last_words(log))
        return folder

    def room(self, shape: str, engines: int) -> Room | None:
        """None on a CPU. Raises: StepFailed."""
        if not self.on_gpu:
            return None
        share = room(shapes.SHAPES[shape], engines, self.machine["free"], self.machine["total"])
        if share is None:
            raise StepFailed(
                f"{engines} engines of the shape {shape} do not fit into the {self.machine['free'] / 2**30:.0f} GiB "
                "that are free: end what else is on the card, or take a larger one"
            )
        return share

    def engine_arguments(self, share: Room | None) -> dict[str, Any]:
        """Of `vllm.LLM`, with dummy weights; of engines that share a card."""
        return {
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            **(share.arguments() if share else {}),
            **self.plan.engine,
        }


@dataclass(frozen=True)
class Step:
    """minutes: at most. measure: leaves what it measures in the folder that it is given, as soon as it is there.
    section: what that folder has to say, as Markdown."""

    name: str
    minutes: float
    measure: Callable[[Run, Path], None]
    section: Callable[[Path], list[str]]


@dataclass(frozen=True)
class Outcome:
    """words: a failed step's last."""

    status: str
    seconds: float
    words: str = ""


def outcome_of(folder: Path) -> Outcome | None:
    path = folder / "outcome.json"
    return Outcome(**json.loads(path.read_text())) if path.exists() else None


def perform(run: Run, step: Step, seconds: float) -> Outcome | None:
    """Runs a step, for so many seconds at most, and notes what became of it. None where that is too little time.

    What fails is an outcome too; an interrupt is noted, and goes on.
    """
    seconds = min(seconds, 60 * step.minutes)
    if seconds < _LEAST_S:
        return None
    folder = run.folder / step.name
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()

    def note(status: str, words: str = "") -> Outcome:
        outcome = Outcome(status, round(time.monotonic() - start, 1), words)
        write_json(folder / "outcome.json", asdict(outcome))
        return outcome

    try:
        with commands.limited(seconds):
            step.measure(run, folder)
    except TimeLimit:
        return note(CUT, f"its time, {seconds:.0f} s, was over")
    except KeyboardInterrupt:
        note(CUT, "interrupted")
        raise
    except Exception as error:
        return note(FAILED, f"{'' if isinstance(error, StepFailed) else type(error).__name__ + ': '}{error}")
    return note(DONE)
