"""The benchmark that holds further conditions to the line of constant strengths."""

from __future__ import annotations

import random
from typing import Any

import pytest

from benchmarks.off_frontier import table


def replies(strength: float, accuracy: float, perplexity: float, further: str = "") -> list[dict[str, Any]]:
    """Ten scenarios of ten replies each, of which so many match."""
    draw = random.Random(f"{strength} {further}")
    lines = []
    for group in range(10):
        hits = [at < round(10 * accuracy) for at in range(10)]
        for hit in draw.sample(hits, 10):
            line = {"method": "circuits" if strength else "none", "strength": strength, "further": further}
            measures = {"perplexity": perplexity * draw.uniform(0.98, 1.02), "repetition": 0.1 * strength}
            lines.append({**line, **measures, "group": str(group), "matches": {"local": {"anger": hit}}})
    return lines


LINE = replies(0, 0, 1) + replies(0.5, 0.4, 2) + replies(1, 0.8, 4)


@pytest.mark.parametrize(
    ("accuracy", "perplexity", "said"), [(0.6, 2.83, "on"), (0.8, 2, "off"), (0.4, 4, "below"), (0.9, 8, "off")]
)
def test_a_condition_is_held_to_the_line_at_its_own_cost(accuracy: float, perplexity: float, said: str) -> None:
    rows = table(LINE + replies(1, accuracy, perplexity, "fading"), "circuits", "perplexity")
    assert len(rows) == 3
    name, told = (cell.strip() for cell in rows[2].strip("|").split("|"))
    assert name == "circuits 1 fading"
    # Between the strengths the line is straight in the logarithm; beyond the largest, level.
    expected = {"on": 0, "off": 40 if accuracy < 0.9 else 10, "below": -40}[said]
    assert float(told.split()[0]) == pytest.approx(expected, abs=3)
    assert told.endswith(f", {said}")


def test_what_repeats_itself_is_held_to_the_line_too() -> None:
    rows = table(LINE + replies(1, 0.8, 2, "fading"), "circuits", "repetition")
    assert rows[2].startswith("| circuits 1 fading | +0.0 (")
