"""What earlier commands left, recognised by the files in their folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emovllm.circuit_files import JSON_NAME
from emovllm.errors import OptionError, ResultsError
from emovllm_offline.comparison import circuits, probes, states, steering
from emovllm_offline.comparison.rows import Kind, Row, Size
from emovllm_offline.evaluation.results import SUMMARY, Summary
from emovllm_offline.reading import compare, results, separate, shift


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of runs. file: in its folder; load: of a folder; rows: of a run by its name; size: as far as the run
    tells it. part: what a run's rows are of, where it has several."""

    file: str
    load: Callable[[Path], Any]
    rows: Callable[[str, Any, Size | None], list[Row]]
    size: Callable[[Any], Size | None]
    part: str = ""


SOURCES: dict[Kind, Source] = {
    "probe train": Source(results.Results.FILE, results.Results.load, probes.rows, probes.size_of),
    "probe compare": Source(
        compare.Compared.FILE, compare.Compared.load, probes.compared_rows, lambda of: _recorded(of.about.get("size"))
    ),
    "probe prompts": Source(shift.Shifts.FILE, shift.Shifts.load, states.prompt_rows, states.shifts_size, "prompt"),
    "probe separate": Source(
        separate.Separated.FILE, separate.Separated.load, states.way_rows, states.separated_size, "states while"
    ),
    "evaluate": Source(SUMMARY, Summary.load, steering.rows, steering.size_of, "method, strength"),
    "circuit": Source(JSON_NAME, circuits.Validated.load, circuits.rows, circuits.size_of),
}


@dataclass(frozen=True, slots=True)
class Run:
    """What one command left. content: what its file holds; all have `model` and `about`."""

    name: str
    kind: Kind
    content: Any

    @property
    def size(self) -> Size | None:
        return SOURCES[self.kind].size(self.content)


@dataclass(frozen=True, slots=True)
class _Found:
    """name: as it was given, or None. place: the folder, in full."""

    name: str | None
    place: Path
    kind: Kind
    content: Any

    @property
    def model(self) -> str:
        """The last part of the model's public name."""
        return str(self.content.model).rpartition("/")[2]


def load_runs(given: Sequence[str]) -> list[Run]:
    """given: folders or the results' files in them, or NAME=FOLDER. A run without a name has its model's, and where
    another run of the same kind would have it too, the folder's beside it.

    Raises: OptionError, also where two runs of a kind have one name; ResultsError, CircuitError.
    """
    found = [run for word in given for run in _find(word)]
    for (_, place), count in Counter((run.kind, run.place) for run in found).items():
        if count > 1:
            raise OptionError(f"{place} is given {count} times")
    named = [Run(_name(run, [one for one in found if one.kind == run.kind]), run.kind, run.content) for run in found]
    for (kind, name), count in Counter((run.kind, run.name) for run in named).items():
        if count > 1:
            raise OptionError(f"{count} runs of {kind} are named {name!r}: give each a name of its own, NAME=FOLDER")
    return named


def _find(word: str) -> list[_Found]:
    """All that a folder holds."""
    name, path = _parsed(word)
    expected = ", ".join(f"{source.file} ({kind})" for kind, source in SOURCES.items())
    if not path.exists():
        raise OptionError(f"{path}: no such folder; give one that holds {expected}")
    folder = path if path.is_dir() else path.parent
    kinds = [
        kind
        for kind, source in SOURCES.items()
        if (path.name == source.file if path.is_file() else (folder / source.file).is_file())
    ]
    if not kinds:
        raise ResultsError(f"{path}: no run that can be compared; expected a folder with one of {expected}")
    return [_Found(name, folder.resolve(), kind, SOURCES[kind].load(folder)) for kind in kinds]


def _parsed(word: str) -> tuple[str | None, Path]:
    name, equals, place = word.partition("=")
    # A folder's own name may have one.
    if not equals or Path(word).exists():
        return None, Path(word).expanduser()
    if not name.strip() or not place.strip():
        raise OptionError(f"{word!r}: expected a folder, or NAME=FOLDER")
    return name.strip(), Path(place).expanduser()


def _name(run: _Found, of_kind: Sequence[_Found]) -> str:
    if run.name is not None:
        return run.name
    alike = [one for one in of_kind if one.name is None and one.model == run.model]
    if len(alike) == 1:
        return run.model
    parts = 1
    # As much of the path as tells it from the others.
    while len({one.place.parts[-parts:] for one in alike}) < len(alike):
        parts += 1
    return f"{run.model} ({'/'.join(run.place.parts[-parts:])})"


def _recorded(size: Mapping[str, int] | None) -> Size | None:
    return None if size is None else Size.model_validate(size)
