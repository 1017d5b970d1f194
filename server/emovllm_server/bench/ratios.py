"""Ratios of paired measurements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from emovllm_server.bench.plan import PLAIN_A, PLAIN_B, Measure
from emovllm_server.bench.record import Timing

RESAMPLES = 4000

# A measurement's place in the table; a measure stands for one engine, `PLAIN` for the two plain ones.
PLAIN: Measure = ("plain", "none")


@dataclass(frozen=True, slots=True)
class Ratio:
    """A geometric mean over rounds, its bootstrap 95% interval (None with fewer than two rounds), and the mean of
    each start."""

    mean: float
    low: float | None
    high: float | None
    rounds: int
    starts: tuple[float, ...]


def ratio(logs: Mapping[str, Sequence[float]], seed: int = 0) -> Ratio:
    """From each start's logarithms of paired ratios.

    With several starts the bootstrap draws starts, and rounds within each: rounds of one start resemble each other.
    """
    of_starts = [np.array(values) for values in logs.values()]
    everything = np.concatenate(of_starts)
    means = tuple(float(np.exp(values.mean())) for values in of_starts)
    mean = float(np.exp(everything.mean()))
    if len(everything) < 2:
        return Ratio(mean, None, None, len(everything), means)
    rng = np.random.default_rng(seed)
    drawn = np.empty((RESAMPLES, len(of_starts)))
    for column in range(len(of_starts)):
        chosen = rng.integers(0, len(of_starts), RESAMPLES)
        for index, values in enumerate(of_starts):
            rows = chosen == index
            picks = rng.integers(0, len(values), (int(rows.sum()), len(values)))
            drawn[rows, column] = values[picks].mean(1)
    low, high = np.exp(np.percentile(drawn.mean(1), [2.5, 97.5]))
    return Ratio(mean, float(low), float(high), len(everything), means)


class Table:
    """Timings by place: (session, start, round) and (measure, batch size)."""

    def __init__(self, timings: Iterable[Timing]) -> None:
        self._rows: dict[tuple[Measure, int], dict[tuple[str, int, int], Timing]] = defaultdict(dict)
        for row in timings:
            self._rows[(row.engine, row.scenario), row.batch_size][row.session, row.start, row.round] = row

    def values(self, measure: Measure, batch_size: int, metric: str) -> dict[tuple[str, int, int], float]:
        """Of each round. That of `PLAIN` is the geometric mean of the two plain engines: they differ, and neither is
        the right one."""
        if measure == PLAIN:
            a, b = (self.values((engine, "none"), batch_size, metric) for engine in (PLAIN_A, PLAIN_B))
            return {place: float(np.sqrt(a[place] * b[place])) for place in a if place in b}
        rows = self._rows.get((measure, batch_size), {})
        return {place: getattr(row, metric) for place, row in rows.items()}

    def value(self, measure: Measure, batch_size: int, metric: str) -> float | None:
        """The geometric mean over all rounds."""
        values = list(self.values(measure, batch_size, metric).values())
        return float(np.exp(np.mean(np.log(values)))) if values else None

    def ratio(
        self, measure: Measure, other: Measure, batch_size: int, metric: str, other_batch_size: int | None = None
    ) -> Ratio | None:
        """`measure` over `other`, paired within each round; None without a round that has both."""
        above = self.values(measure, batch_size, metric)
        below = self.values(other, batch_size if other_batch_size is None else other_batch_size, metric)
        logs: dict[str, list[float]] = defaultdict(list)
        for place in above:
            if place in below:
                logs[place[0]].append(float(np.log(above[place] / below[place])))
        return ratio(logs) if logs else None
