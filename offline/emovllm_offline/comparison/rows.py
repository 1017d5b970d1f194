"""What runs are compared by: a row for each, or for each of its parts; kept as `comparison.json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from emovllm.spec import Frozen
from emovllm_offline.intervals import Estimate
from emovllm_offline.reading.results import Figure
from emovllm_offline.storage.results_file import ResultsFile

Kind = Literal["probe train", "probe compare", "probe prompts", "probe separate", "evaluate", "circuit"]
# So many digits of a digest tell texts apart.
SHORT = 8


class Value(Frozen):
    """A figure, and its 95% interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, figure: Figure | Estimate | float) -> Value:
        if isinstance(figure, Figure | Estimate):
            return cls(value=figure.value, low=figure.low, high=figure.high)
        return cls(value=float(figure))

    def told(self, form: str = ".3f") -> str:
        shown = f"{self.value:{form}}"
        return shown if self.low is None or self.high is None else f"{shown} [{self.low:{form}}, {self.high:{form}}]"


class Size(Frozen):
    """Of a model, as far as it is known. parameters: of all its weights."""

    parameters: int | None = None
    layers: int | None = None
    hidden: int | None = None

    def __str__(self) -> str:
        if self.parameters is not None:
            number, unit = (self.parameters / 1e9, "B") if self.parameters >= 1e9 else (self.parameters / 1e6, "M")
            return f"{number:.3g}{unit}"
        return f"{self.layers or '?'} layers" + (f" x {self.hidden}" if self.hidden is not None else "")


class Point(Frozen):
    """A figure at one layer. depth: 1 after the last."""

    depth: float
    value: Value


class Row(Frozen):
    """One run, or a part of it: one system prompt, one method and strength.

    texts: sha256 of what was measured on, empty where nothing was; count: how many texts, messages, replies. facts:
    what else tells runs apart, by the columns' names. figures: by theirs; None of what could not be measured. depths:
    the figures that lines over depth are drawn of, by the line's name.
    """

    run: str
    part: str = ""
    model: str
    size: Size | None
    labels: tuple[str, ...]
    texts: str
    count: int
    facts: dict[str, str]
    figures: dict[str, Value | None]
    depths: dict[str, tuple[Point, ...]] = Field(default_factory=dict)


class OfKind(Frozen):
    """The runs of one command. notes: what must be known before figures are compared."""

    kind: Kind
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


class Comparison(ResultsFile):
    """All of `comparison.json`. about: what each run's file says of how it was made, by kind and run."""

    FILE = "comparison.json"

    format: Literal["emovllm-comparison"] = "emovllm-comparison"
    format_version: Literal[1] = 1
    tables: tuple[OfKind, ...]
    about: dict[str, dict[str, dict[str, Any]]]

    def of(self, kind: Kind) -> OfKind:
        """Raises: KeyError where there is no run of that kind."""
        for table in self.tables:
            if table.kind == kind:
                return table
        raise KeyError(kind)
