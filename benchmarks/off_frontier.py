"""Is anything better than a weaker strength? The further conditions of an evaluation beside the line of its strengths.

    scripts/env python benchmarks/off_frontier.py OUT [--method circuits] [--cost perplexity]    # a folder of evaluate

The plain strengths, and nothing at all as strength 0, are a line of accuracy over what it costs: the median of
`perplexity` (its logarithm), or `fluency`, or the mean `repetition`. Prints, for each further condition and judge of
OUT, how far its accuracy is above that line at its own cost, in points, with a 95% interval: bootstrap over groups, in
which the line moves too. Where the interval holds 0, a weaker or stronger constant strength may do as well.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COSTS: dict[str, Callable[[np.ndarray], float]] = {
    "perplexity": lambda values: float(np.log(np.median(values))),
    "fluency": lambda values: float(np.log(np.median(values))),
    "repetition": lambda values: float(np.mean(values)),
}


@dataclass(frozen=True)
class Replies:
    """Of one condition: by group, the costs and the matches of each reply; a group that has none is not there."""

    costs: Mapping[str, np.ndarray]
    matches: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]], judge: str, cost: str) -> Replies:
        costs: dict[str, list[float]] = {}
        matches: dict[str, list[bool]] = {}
        for line in lines:
            if line[cost] is not None:
                costs.setdefault(line["group"], []).append(line[cost])
            matches.setdefault(line["group"], []).extend(
                match for match in line["matches"][judge].values() if match is not None
            )
        return cls(_arrays(costs), _arrays(matches))

    def point(self, groups: Sequence[str], cost: str) -> tuple[float, float]:
        """Cost and accuracy of the replies of these groups, each as often as it is named."""
        costs = np.concatenate([self.costs[group] for group in groups if group in self.costs])
        matches = np.concatenate([self.matches[group] for group in groups if group in self.matches])
        return COSTS[cost](costs), float(matches.mean())


def _arrays(values: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    return {name: np.asarray(of, np.float64) for name, of in values.items()}


def above(line: Sequence[Replies], one: Replies, groups: Sequence[str], cost: str) -> float:
    """How far a condition's accuracy is above the line at its cost; beyond the line's ends, above its last point."""
    points = sorted(replies.point(groups, cost) for replies in line)
    at, accuracy = one.point(groups, cost)
    costs, accuracies = zip(*points, strict=True)
    return accuracy - float(np.interp(at, costs, accuracies))


def interval(
    line: Sequence[Replies], one: Replies, cost: str, seed: int = 0, resamples: int = 1000
) -> tuple[float, float, float]:
    """The value with its 95% bounds, of which whole groups are drawn."""
    groups = sorted(one.matches)
    draw = np.random.default_rng(seed).integers(0, len(groups), (resamples, len(groups)))
    drawn = [above(line, one, [groups[i] for i in row], cost) for row in draw]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return above(line, one, groups, cost), float(low), float(high)


def table(lines: Sequence[Mapping[str, Any]], method: str, cost: str) -> list[str]:
    judges = list(lines[0]["matches"])
    head = [f"condition, cost {cost}", *(f"above the line, {judge}" for judge in judges)]
    rows = [head, ["---", *("---:" for _ in judges)]]
    ways: dict[tuple[str, float, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        ways.setdefault((line["method"], line["strength"], line.get("further", "")), []).append(line)
    plain = [of for (name, _, further), of in ways.items() if name in ("none", method) and not further]
    for (name, strength, further), own in ways.items():
        if name != method or not further:
            continue
        cells = []
        for judge in judges:
            value, low, high = interval(
                [Replies.of(of, judge, cost) for of in plain], Replies.of(own, judge, cost), cost
            )
            said = "off" if low > 0 else "below" if high < 0 else "on"
            cells.append(f"{100 * value:+.1f} ({100 * low:+.0f} to {100 * high:+.0f}), {said}")
        rows.append([f"{method} {strength:g} {further}", *cells])
    return [f"| {' | '.join(row)} |" for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", default="circuits")
    parser.add_argument("--cost", choices=list(COSTS), default="perplexity")
    options = parser.parse_args()
    lines = [json.loads(line) for line in (options.out / "scored.jsonl").read_text().splitlines()]
    print("\n".join(table(lines, options.method, options.cost)))


if __name__ == "__main__":
    main()
