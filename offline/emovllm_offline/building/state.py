"""How far a build has come, in `build.json` of its work folder: what an interrupted one goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from emovllm.errors import StoredError
from emovllm.files import read_json, write_atomically
from emovllm_offline.building.sizes import Counts, Sizes, Speed, Stage
from emovllm_offline.storage.settings import plain, refuse_others

FILE = "build.json"
REMEDY = "give --fresh, or another --work"
# The setting of the judges after the first: they measure what is made without them, so that they may change.
MEASURING = "measured by"


class Progress(BaseModel):
    """A stage that was begun. planned, minutes: estimated, and taken so far. commands: which repeat it alone.
    notes: what it found or did otherwise, in words."""

    model_config = ConfigDict(extra="forbid")

    planned: float
    done: bool = False
    minutes: float = 0.0
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class State(BaseModel):
    """settings: what decides the results. sizes: of the stages, those that were begun not to be changed any more."""

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any]
    speed: Speed
    counts: Counts
    sizes: Sizes
    left_out: tuple[str, ...] = ()
    stages: dict[Stage, Progress] = {}

    @classmethod
    def begun(cls, place: Path) -> State | None:
        """What is in the folder; None where no stage was begun. Raises: StoredError."""
        state = read_json(place / FILE, cls, StoredError) if (place / FILE).exists() else None
        return state if state is not None and state.stages else None

    @classmethod
    def load(cls, place: Path, settings: Mapping[str, Any]) -> State | None:
        """The same; measured again where other judges are to, as which it is saved when that begins.

        Raises: StoredError where it is of other settings.
        """
        state = cls.begun(place)
        if state is None:
            return None
        now = plain(settings)
        if state.settings.get(MEASURING) != now.get(MEASURING):
            state.settings[MEASURING] = now.get(MEASURING)
            if (evaluation := state.stages.get("evaluate")) is not None:
                evaluation.done = False
        refuse_others(place, state.settings, now, REMEDY)
        return state

    def save(self, place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(place / FILE, (self.model_dump_json(indent=1) + "\n").encode())

    @property
    def ended(self) -> bool:
        """Whether all that there is to do was done; the last stage is that of the evaluation."""
        return (last := self.stages.get("evaluate")) is not None and last.done

    @property
    def spent(self) -> float:
        """Minutes that all stages took so far."""
        return sum(stage.minutes for stage in self.stages.values())

    @property
    def slower(self) -> float:
        """How many times its estimate what is done took; 1 where it was faster."""
        done = [stage for stage in self.stages.values() if stage.done]
        planned = sum(stage.planned for stage in done)
        return max(1.0, sum(stage.minutes for stage in done) / planned) if planned else 1.0
