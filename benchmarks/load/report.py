"""A load run as JSON, as a Markdown table, and as a figure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load.clients import Tally
from benchmarks.load.memory import Memory, slope

_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "#6e6e6e"


@dataclass(frozen=True, slots=True)
class Result:
    """All that a run measured; `timeline` holds (seconds, requests that ended until then)."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    distinct_replies: int
    seconds: float
    tally: Tally
    memory: Memory
    timeline: list[tuple[float, int]]
    running_after: float  # vLLM's own gauges, once all was done
    waiting_after: float

    @property
    def failed(self) -> int:
        return self.tally.counts["wrong"] + self.tally.counts["lost"]

    def summary(self) -> dict[str, Any]:
        counts, tally = self.tally.counts, self.tally
        grown = slope(self.memory.seconds, self.memory.mib, self.settings["warmup_s"])
        return {
            **{name: counts[name] for name in ("right", "wrong", "lost", "left")},
            "right_by_kind": dict(sorted(tally.kinds.items())),
            "distinct_expected_replies": self.distinct_replies,
            "seconds": round(self.seconds, 1),
            "replies_per_s": round(counts["right"] / self.seconds, 2),
            "first_token_s": _percentiles(tally.first_s),
            "whole_reply_s": _percentiles(tally.total_s),
            "rss_mib_at_warmup": _at(self.memory, self.settings["warmup_s"]),
            "rss_mib_at_end": self.memory.mib[-1],
            "rss_mib_per_minute": {name: round(value, 3) for name, value in asdict(grown).items()},
            "running_after": self.running_after,
            "waiting_after": self.waiting_after,
        }

    def write(self, folder: Path) -> None:
        """load.json, load.md and load.png."""
        folder.mkdir(parents=True, exist_ok=True)
        data = {
            "settings": self.settings,
            "machine": self.machine,
            "versions": self.versions,
            **self.summary(),
            "failures": self.tally.failures,
            "memory": {"seconds": self.memory.seconds, "mib": self.memory.mib, "parts": self.memory.parts},
            "timeline": self.timeline,
        }
        (folder / "load.json").write_text(json.dumps(data, indent=1) + "\n")
        (folder / "load.md").write_text(self.markdown())
        self._draw(folder / "load.png")

    def markdown(self) -> str:
        told = self.summary()
        kinds = ", ".join(f"{count} {kind}" for kind, count in told["right_by_kind"].items())
        grown = told["rss_mib_per_minute"]
        first, whole = told["first_token_s"], told["whole_reply_s"]
        rows = {
            "clients, seconds": f"{self.settings['clients']}, {told['seconds']:.0f}",
            "right replies": f"{told['right']} ({kinds})",
            "wrong replies": told["wrong"],
            "lost replies": told["lost"],
            "replies whose client left in the middle": told["left"],
            "different replies expected": told["distinct_expected_replies"],
            "replies per second": told["replies_per_s"],
            "first token, p50 / p99": f"{first['p50']:.2f} s / {first['p99']:.2f} s",
            "whole reply, p50 / p99": f"{whole['p50']:.2f} s / {whole['p99']:.2f} s",
            "memory of all server processes, after warm-up and at the end": (
                f"{told['rss_mib_at_warmup']:.0f} MiB, {told['rss_mib_at_end']:.0f} MiB"
            ),
            "its slope after warm-up": (f"{grown['mean']:+.2f} MiB/min [{grown['low']:+.2f}, {grown['high']:+.2f}]"),
            "requests running and waiting afterwards, by vLLM's gauges": (
                f"{told['running_after']:.0f}, {told['waiting_after']:.0f}"
            ),
        }
        return "\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"

    def _draw(self, path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        made = Figure((10, 3.6), dpi=110, layout="constrained")
        FigureCanvasAgg(made)
        left, right = made.subplots(1, 2)
        seconds, mib = self.memory.seconds, self.memory.mib
        left.plot(seconds, mib, color=_BLUE, linewidth=1.2)
        left.axvline(self.settings["warmup_s"], color=_GREY, linewidth=0.8, linestyle="--")
        left.set_ylim(0, 1.15 * max(mib))
        left.set_title("Resident memory of all server processes, MiB", loc="left", fontsize=11)
        ends, done = (np.asarray(values, float) for values in zip(*self.timeline, strict=True))
        right.step(ends[1:], np.diff(done) / np.diff(ends), color=_ORANGE, linewidth=1.2)
        right.set_ylim(0)
        right.set_title("Requests that ended, per second", loc="left", fontsize=11)
        for panel in (left, right):
            panel.set_xlabel("seconds")
            panel.spines[["top", "right"]].set_visible(False)
        made.savefig(path, format="png", metadata={"Software": None})


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {"p50": float("nan"), "p99": float("nan")}
    return {f"p{point}": round(float(np.percentile(values, point)), 3) for point in (50, 99)}


def _at(memory: Memory, second: float) -> float:
    return next((mib for at, mib in zip(memory.seconds, memory.mib, strict=True) if at >= second), memory.mib[-1])
