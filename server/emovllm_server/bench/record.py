"""The measurements on disk: one JSON line each, written as soon as it is there, taken up by a rerun."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emovllm.errors import BenchError
from emovllm.files import write_atomically
from emovllm_server.bench.plan import Block, Settings

NAME = "measurements.jsonl"
# What is compared, and how it is called.
METRICS = {"tokens_per_s": "tokens/s", "ttft_ms": "TTFT p50", "tpot_ms": "TPOT p50", "itl_p99_ms": "ITL p99"}


@dataclass(frozen=True, slots=True)
class Timing:
    """One batch on one engine. `session`: the processes it ran on, which a resumed start has others of."""

    start: int
    round: int
    batch_size: int
    engine: str
    scenario: str
    session: str
    seconds: float
    tokens_per_s: float
    ttft_ms: float  # median over requests
    tpot_ms: float  # median over requests: mean time per token after the first
    itl_p99_ms: float  # over all gaps of all requests


@dataclass(frozen=True, slots=True)
class PrefixHits:
    """One engine's prefix cache over requests with a common beginning, in tokens, by vLLM's own counters."""

    start: int
    engine: str
    scenario: str
    session: str
    queries: int
    hits: int


def timing(block: Block, engine: str, scenario: str, session: str, reply: dict[str, Any]) -> Timing:
    """From an engine's reply: seconds, and each request's times of arrival, in seconds from its submission."""
    arrivals = [np.array(times) for times in reply["arrivals"]]  # each [output_tokens]
    gaps = np.concatenate([np.diff(times) for times in arrivals])
    return Timing(
        block.start,
        block.round,
        block.batch_size,
        engine,
        scenario,
        session,
        seconds=reply["seconds"],
        tokens_per_s=sum(map(len, arrivals)) / reply["seconds"],
        ttft_ms=1e3 * float(np.median([times[0] for times in arrivals])),
        tpot_ms=1e3 * float(np.median([(times[-1] - times[0]) / (len(times) - 1) for times in arrivals])),
        itl_p99_ms=1e3 * float(np.percentile(gaps, 99)),
    )


class Record:
    """A folder's measurements, of one `Settings` only."""

    def __init__(self, folder: Path, settings: Settings, fresh: bool = False) -> None:
        """Raises: BenchError where the folder holds a benchmark with other settings."""
        self.path = folder / NAME
        self.timings: list[Timing] = []
        self.prefixes: list[PrefixHits] = []
        self.engine: dict[str, Any] = {}  # what the steered engine said about itself
        folder.mkdir(parents=True, exist_ok=True)
        lines = [] if fresh or not self.path.exists() else self.path.read_text().splitlines()
        # The last line may have been cut off.
        rows = [row for line in lines if (row := _parse(line)) is not None]
        wanted = settings.model_dump(mode="json")
        if not rows:
            write_atomically(self.path, (json.dumps({"settings": wanted}) + "\n").encode())
            return
        _check_settings(folder, rows[0].get("settings", {}), wanted)
        for row in rows[1:]:
            if "timing" in row:
                self.timings.append(Timing(**row["timing"]))
            elif "prefix" in row:
                self.prefixes.append(PrefixHits(**row["prefix"]))
            else:
                self.engine = row["engine"]
        # Ends in a newline again, whatever was cut off.
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def add(self, row: Timing | PrefixHits) -> None:
        if isinstance(row, Timing):
            self.timings.append(row)
            self._write({"timing": asdict(row)})
        else:
            self.prefixes.append(row)
            self._write({"prefix": asdict(row)})

    def add_engine(self, about: dict[str, Any]) -> None:
        self.engine = about
        self._write({"engine": about})

    def _write(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def has_block(self, block: Block) -> bool:
        """Whether one session measured all of it. One that was cut short is measured again as a whole: its pairs
        would be of other processes at another time."""
        sessions = _by_session(row for row in self.timings if _place(row) == _place(block))
        return any({(row.engine, row.scenario) for row in rows} >= set(block.order) for rows in sessions)

    def has_prefix(self, start: int, engines: int) -> bool:
        return len({row.engine for row in self.prefixes if row.start == start}) >= engines

    def best(self) -> list[Timing]:
        """Each block's rows from the one session that got furthest with it."""
        places: dict[tuple[int, int, int], list[Timing]] = defaultdict(list)
        for row in self.timings:
            places[_place(row)].append(row)
        return [row for rows in places.values() for row in max(_by_session(rows)[::-1], key=len)]


def _place(at: Timing | Block) -> tuple[int, int, int]:
    return at.start, at.round, at.batch_size


def _by_session(rows: Iterable[Timing]) -> list[list[Timing]]:
    sessions: dict[str, list[Timing]] = defaultdict(list)
    for row in rows:
        sessions[row.session].append(row)
    return list(sessions.values())


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return row


def _check_settings(folder: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing: Sequence[str] = [name for name in wanted if there.get(name) != wanted[name]]
    if differing:
        said = "; ".join(f"{name} {there.get(name)!r} there, {wanted[name]!r} now" for name in differing)
        raise BenchError(f"{folder} holds a benchmark with other settings ({said}): give another --out, or --fresh")
