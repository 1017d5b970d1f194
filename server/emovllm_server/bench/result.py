"""What the measurements say: rows of figures and ratios, and whether the targets are met."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from emovllm_server.bench.plan import (
    BLENDS,
    DISTINCT,
    HF,
    MIXED,
    NONE,
    ONE,
    PLAIN_A,
    PLAIN_B,
    SCENARIOS,
    STEERED,
    Measure,
    Settings,
)
from emovllm_server.bench.ratios import PLAIN, Ratio, Table
from emovllm_server.bench.record import METRICS, PrefixHits, Timing

AA = "A/A: plain B / plain A"
# Of one and the same engine.
TOGGLED = ((ONE, NONE), (MIXED, NONE), (BLENDS, NONE), (BLENDS, ONE))
# Fewer rounds than this say nothing about a target.
ENOUGH_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a batch size's table. `values` by metric, geometric means over rounds (None in a row of ratios
    alone); `ratios` by metric, to `against`."""

    name: str
    against: str | None
    values: dict[str, float] | None
    ratios: dict[str, Ratio]


@dataclass(frozen=True, slots=True)
class Target:
    """`at_least`: whether the limit is the least allowed, or the most. `verdict`: "met" where the whole interval
    is on its right side, "missed" where none of it is, else "open"; "too few rounds" to say."""

    name: str
    batch_size: int | None
    measured: Ratio
    limit: float
    at_least: bool
    verdict: str


@dataclass(frozen=True, slots=True)
class Prefix:
    """The prefix cache's hit rate over requests with a common beginning: tokens found over tokens asked."""

    name: str
    rate: float
    hits: int
    queries: int


@dataclass(frozen=True, slots=True)
class Result:
    command: str
    complete: bool
    machine: dict[str, Any]
    engine: dict[str, Any]  # as the steered engine describes itself
    settings: Settings
    emotions: int
    rows: dict[int, list[Row]]  # by batch size
    prefixes: list[Prefix]
    targets: list[Target]
    timings: list[Timing]

    def to_json(self) -> str:
        fields = {name: getattr(self, name) for name in self.__slots__ if name not in ("settings", "rows", "timings")}
        return json.dumps(
            {
                **{name: _plain(value) for name, value in fields.items()},
                "settings": self.settings.model_dump(mode="json"),
                "rows": {str(size): _plain(rows) for size, rows in self.rows.items()},
                "measurements": _plain(self.timings),
            },
            indent=1,
            allow_nan=False,
        )


def build(
    settings: Settings,
    emotions: int,
    timings: list[Timing],
    prefixes: list[PrefixHits],
    *,
    command: str,
    machine: dict[str, Any],
    engine: dict[str, Any],
    complete: bool = True,
) -> Result:
    table = Table(timings)
    rows = {size: _rows(table, size, emotions) for size in settings.hf_batch_sizes()}
    return Result(
        command,
        complete,
        machine,
        engine,
        settings,
        emotions,
        {size: of_size for size, of_size in rows.items() if of_size},
        _prefixes(prefixes),
        [
            *_targets(settings, table, cpu=engine.get("device", "cpu") == "cpu"),
            *_prefix_targets(prefixes),
        ],
        timings,
    )


def scenario_name(scenario: str, emotions: int) -> str:
    return {
        NONE: "no emotion",
        ONE: "one emotion",
        MIXED: f"{emotions} emotions mixed",
        BLENDS: f"{DISTINCT} blends and strengths",
    }[scenario]


def toggled_name(scenario: str, other: str, emotions: int) -> str:
    return f"toggled: {scenario_name(scenario, emotions)} / {scenario_name(other, emotions)}"


def _rows(table: Table, size: int, emotions: int) -> list[Row]:
    names = {scenario: scenario_name(scenario, emotions) for scenario in SCENARIOS}
    plain, single, static = "plain vLLM", "Hugging Face, one at a time", "Hugging Face, static batch"
    own = single if size == 1 else static
    rows = [
        _row(table, size, plain, PLAIN),
        _row(table, size, AA, (PLAIN_B, NONE), (PLAIN_A, NONE), "plain A", absolute=False),
        *(_row(table, size, names[scenario], (STEERED, scenario), PLAIN, plain) for scenario in SCENARIOS),
        *(
            _row(
                table,
                size,
                toggled_name(scenario, other, emotions),
                (STEERED, scenario),
                (STEERED, other),
                names[other],
                absolute=False,
            )
            for scenario, other in TOGGLED
        ),
        _row(table, size, own, (HF, ONE), PLAIN, plain),
        _row(table, size, f"{names[ONE]} / {own}", (STEERED, ONE), (HF, ONE), own, absolute=False),
    ]
    if size != 1:
        above = f"{names[ONE]} / {single}"
        rows.append(_row(table, size, above, (STEERED, ONE), (HF, ONE), single, absolute=False, other_size=1))
    return [row for row in rows if row is not None]


def _row(
    table: Table,
    size: int,
    name: str,
    measure: Measure,
    other: Measure | None = None,
    against: str | None = None,
    absolute: bool = True,
    other_size: int | None = None,
) -> Row | None:
    """None where nothing was measured for it."""
    values, ratios = {}, {}
    for metric in METRICS:
        if absolute and (value := table.value(measure, size, metric)) is not None:
            values[metric] = value
        if other is not None and (ratio := table.ratio(measure, other, size, metric, other_size)) is not None:
            ratios[metric] = ratio
    return Row(name, against, values or None, ratios) if values or ratios else None


def _targets(settings: Settings, table: Table, cpu: bool) -> Iterable[Target]:
    none, one, blended = (STEERED, NONE), (STEERED, ONE), (STEERED, BLENDS)
    speed, every = "tokens_per_s", 0.98 if cpu else 0.97
    wanted: list[tuple[str, Measure, Measure, str, float, bool]] = [
        ("no emotion, tokens/s over plain", none, PLAIN, speed, 0.99, True),
        ("no emotion, TPOT over plain", none, PLAIN, "tpot_ms", 1.01, False),
        ("every request steered, tokens/s over plain", one, PLAIN, speed, every, True),
        ("every request steered, tokens/s toggled", one, none, speed, every, True),
        (f"{DISTINCT} blends, tokens/s over one emotion", blended, one, speed, 0.97, True),
    ]
    for name, measure, other, metric, limit, at_least in wanted:
        for size in settings.batch_sizes:
            measured = table.ratio(measure, other, size, metric)
            if measured is not None:
                yield Target(name, size, measured, limit, at_least, verdict(measured, limit, at_least))
    largest = max(settings.batch_sizes)
    measured = table.ratio(one, (HF, ONE), largest, speed, other_batch_size=1)
    if measured is not None and cpu:
        name = "one emotion, tokens/s over Hugging Face with hooks, one prompt at a time"
        yield Target(name, largest, measured, 12.0, True, verdict(measured, 12.0, True))


def verdict(measured: Ratio, limit: float, at_least: bool) -> str:
    if measured.low is None or measured.high is None or measured.rounds < ENOUGH_ROUNDS:
        return "too few rounds"
    if measured.low >= limit if at_least else measured.high <= limit:
        return "met"
    return "missed" if (measured.high < limit if at_least else measured.low > limit) else "open"


def _prefixes(prefixes: list[PrefixHits]) -> list[Prefix]:
    found = []
    for engine, scenario in dict.fromkeys((row.engine, row.scenario) for row in prefixes):
        rows = [row for row in prefixes if (row.engine, row.scenario) == (engine, scenario)]
        hits, queries = sum(row.hits for row in rows), sum(row.queries for row in rows)
        name = "plain vLLM" if engine == PLAIN_A else "every request another emotion"
        found.append(Prefix(name, hits / queries if queries else 0.0, hits, queries))
    return found


def _prefix_targets(prefixes: list[PrefixHits]) -> Iterable[Target]:
    plain, steered = ({row.start: row for row in prefixes if row.engine == name} for name in (PLAIN_A, STEERED))
    both = sorted(plain.keys() & steered.keys())
    below = sum(plain[start].hits for start in both)
    if below:
        # Counters, not times: they are exact.
        mean = sum(steered[start].hits for start in both) / below
        of_starts = tuple(steered[start].hits / plain[start].hits for start in both)
        name = "shared prefix, hits over plain"
        exact = Ratio(mean, mean, mean, len(both), of_starts)
        yield Target(name, None, exact, 1.0, True, "met" if mean >= 1 else "missed")


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
