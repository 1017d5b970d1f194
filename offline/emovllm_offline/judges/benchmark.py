"""How often judges are right on texts whose emotions are known, by the register of the texts.

A judge is right in the register that it was made for, and seldom in others: it counts only where it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from emovllm.files import write_atomically
from emovllm.readout import NEUTRAL
from emovllm_offline.data.labelled import Labelled, by_register
from emovllm_offline.intervals import Estimate, by_group
from emovllm_offline.judges.agreement import agreement
from emovllm_offline.judges.judge import Judge, Verdict, require_judged
from emovllm_offline.reporting.tables import Table, print_all

FILE = "judge-benchmark.json"
# The accuracy in a register above which a judge counts there.
COUNTS = 0.75


class Figure(BaseModel):
    """One judge in one register. recall: of the texts of one label alone, by label; None where there are none.

    low, high: the 95% interval of the accuracy, by groups where the texts have them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    judge: str
    register_: str = Field(alias="register")
    texts: int
    unjudged: int
    accuracy: float
    low: float
    high: float
    recall: dict[str, float | None]

    @property
    def counts(self) -> bool:
        return self.accuracy > COUNTS


class Benchmark(BaseModel):
    """judges: what each is called here, and its configuration. kappa: Cohen's, of two judges in a register."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: tuple[str, ...]
    judges: dict[str, dict[str, Any]]
    figures: tuple[Figure, ...]
    kappa: dict[str, dict[str, float | None]]

    def save(self, folder: str | Path) -> None:
        """Writes FILE."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, (self.model_dump_json(indent=1, by_alias=True) + "\n").encode())

    def print(self) -> None:
        print_all([self.accuracies(), *([self.agreements()] if any(self.kappa.values()) else [])])

    def accuracies(self) -> Table:
        return Table(
            ["register, judge", "texts", "not judged", "accuracy", "95% interval", "counts", *self.labels],
            [
                [
                    f"{figure.register_}, {figure.judge}",
                    str(figure.texts),
                    str(figure.unjudged),
                    f"{figure.accuracy:.3f}",
                    f"{figure.low:.3f} to {figure.high:.3f}",
                    "yes" if figure.counts else "no",
                    *("" if (recall := figure.recall[label]) is None else f"{recall:.2f}" for label in self.labels),
                ]
                for figure in self.figures
            ],
            title=f"how often each judge is right; it counts above {COUNTS:.0%}; by label: recall",
        )

    def agreements(self) -> Table:
        pairs = list(dict.fromkeys(pair for kappas in self.kappa.values() for pair in kappas))
        return Table(
            ["register", *pairs],
            [
                [register, *("" if (kappa := kappas.get(pair)) is None else f"{kappa:.2f}" for pair in pairs)]
                for register, kappas in self.kappa.items()
            ],
            title="Cohen's kappa of two judges",
        )


def benchmark(judges: Mapping[str, Judge], rows: Sequence[Labelled], emotions: Sequence[str]) -> Benchmark:
    """Measures blind judges on labelled texts; a text of several labels is judged rightly by any of them.

    judges: by the names that the tables have. Raises: JudgeError, EndpointError, EmbeddingError.
    """
    labels = (*(emotion for emotion in emotions if emotion != NEUTRAL), NEUTRAL)
    figures: list[Figure] = []
    kappa: dict[str, dict[str, float | None]] = {}
    for register, texts in by_register(rows).items():
        verdicts = {name: _verdicts(name, judge, texts) for name, judge in judges.items()}
        figures += [figure(name, register, texts, said, labels) for name, said in verdicts.items()]
        names = list(verdicts)
        kappa[register] = {
            f"{one}, {other}": agreement(verdicts[one], verdicts[other]).kappa
            for place, one in enumerate(names)
            for other in names[place + 1 :]
        }
    configs = {name: {"name": judge.name, "config": dict(judge.config)} for name, judge in judges.items()}
    return Benchmark(labels=labels, judges=configs, figures=tuple(figures), kappa=kappa)


def _verdicts(name: str, judge: Judge, rows: Sequence[Labelled]) -> list[Verdict]:
    verdicts = judge.judge([row.text for row in rows], [row.label[0] for row in rows])
    require_judged(name, verdicts)
    return verdicts


def figure(
    judge: str, register: str, rows: Sequence[Labelled], verdicts: Sequence[Verdict], labels: Sequence[str]
) -> Figure:
    """Of one judge's verdicts on the texts of one register; at least one of them is judged."""
    judged = [(row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if verdict.judged]
    right = np.array([_right(row, verdict) for row, verdict in judged])
    estimate: Estimate = by_group(right, [row.group or f"#{place}" for place, (row, _) in enumerate(judged)])
    alone = [row.label[0] if len(row.label) == 1 else None for row, _ in judged]
    recall = {}
    for label in labels:
        of_label = right[[one == label for one in alone]]
        recall[label] = float(of_label.mean()) if len(of_label) else None
    return Figure(
        judge=judge,
        register=register,
        texts=len(rows),
        unjudged=len(rows) - len(judged),
        accuracy=estimate.value,
        low=estimate.low,
        high=estimate.high,
        recall=recall,
    )


def _right(row: Labelled, verdict: Verdict) -> bool:
    """A judge that is told the target says only whether the first label matches."""
    return verdict.match if verdict.label is None else verdict.label in row.label
