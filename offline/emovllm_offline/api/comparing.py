"""Runs beside each other, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emovllm_offline.api.results import Picture, Row
from emovllm_offline.comparison.compare import compare as _compare
from emovllm_offline.comparison.rows import Comparison, Kind
from emovllm_offline.comparison.runs import load_runs


@dataclass(frozen=True, slots=True)
class RunComparison:
    """What several models, or several ways, reached: a table for each kind of run."""

    comparison: Comparison

    @property
    def notes(self) -> list[str]:
        """What must be known before figures are compared: of which kind of runs, and what."""
        return [f"{of.kind}: {note}" for of in self.comparison.tables for note in of.notes]

    def table(self, kind: Kind = "probe train") -> list[Row]:
        """Of each run of a kind, or of each of its parts: the model, what else tells it apart, and its figures, with
        the ends of their intervals as `FIGURE, low` and `FIGURE, high`. None of what was not measured.

        Raises: KeyError where there is no run of that kind.
        """
        return [
            {
                "run": row.run,
                **({"part": row.part} if row.part else {}),
                "model": row.model,
                "parameters": row.size and row.size.parameters,
                "n": row.count,
                **row.facts,
                **{
                    f"{name}{end}": value and getattr(value, at)
                    for name, value in row.figures.items()
                    for end, at in (("", "value"), (", low", "low"), (", high", "high"))
                },
            }
            for row in self.comparison.of(kind).rows
        ]

    def plot(self, kind: Kind = "probe train") -> Picture:
        """A line for each run over relative depth. kind: probe train, probe prompts or probe separate. Raises:
        KeyError, as `table`, and for a kind whose figures are of one layer."""
        from emovllm_offline.comparison.report import depth_figure

        return Picture.of(depth_figure(self.comparison.of(kind)))

    def save(self, out: str | Path) -> None:
        """Writes what `emovllm compare` does: comparison.json and the report."""
        from emovllm_offline.comparison.report import write_report

        write_report(self.comparison, Path(out))


def compare(runs: Sequence[str | Path]) -> RunComparison:
    """Puts runs of commands, or what the functions here left in their folders, beside each other.

    runs: folders, or the results' files in them; "NAME=FOLDER" gives a run a name.
    Raises: OptionError, ResultsError, CircuitError.
    """
    return RunComparison(_compare(load_runs([str(run) for run in runs])))
