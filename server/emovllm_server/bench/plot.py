"""The result as one figure: tokens/s over plain vLLM, and toggled on one engine."""

from __future__ import annotations

from pathlib import Path

from emovllm_server.bench.plan import BLENDS, MIXED, NONE, ONE, SCENARIOS
from emovllm_server.bench.result import AA, TOGGLED, Result, Row, scenario_name, toggled_name

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = {NONE: "#000000", ONE: "#0072B2", MIXED: "#E69F00", BLENDS: "#009E73"}
_MARKERS = {NONE: "o", ONE: "s", MIXED: "^", BLENDS: "D"}
_GREY = "#6e6e6e"


def draw(result: Result, path: Path) -> None:
    """Writes a PNG. Raises: ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure((10, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(made)
    sizes = [size for size in result.rows if size in result.settings.batch_sizes]
    left, right = made.subplots(1, 2, sharey=True)
    _aa(left, result, sizes)
    for panel, title, scenarios in (
        (left, "over plain vLLM", SCENARIOS),
        (right, "toggled on one engine, over no emotion", [above for above, below in TOGGLED if below == NONE]),
    ):
        for offset, scenario in enumerate(scenarios):
            name = scenario_name(scenario, result.emotions)
            shown = name if panel is left else toggled_name(scenario, NONE, result.emotions)
            rows = {size: _row(result.rows[size], shown) for size in sizes}
            _points(panel, rows, sizes, (offset - (len(scenarios) - 1) / 2) * 0.15, scenario, name)
        panel.axhline(1, color=_GREY, linewidth=0.8)
        panel.set_title(title, loc="left", fontsize=11)
        panel.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        panel.set_xlim(-0.5, len(sizes) - 0.5)
        panel.set_xlabel("batch size")
        panel.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("tokens/s, ratio (95% interval over rounds)")
    left.legend(fontsize=9, frameon=False)
    made.savefig(path, format="png", metadata={"Software": None})


def _row(rows: list[Row], name: str) -> Row | None:
    return next((row for row in rows if row.name == name), None)


def _points(
    panel: object, rows: dict[int, Row | None], sizes: list[int], shift: float, scenario: str, name: str
) -> None:
    for x, size in enumerate(sizes):
        row = rows[size]
        if row is None or "tokens_per_s" not in row.ratios:
            continue
        ratio = row.ratios["tokens_per_s"]
        low = ratio.mean if ratio.low is None else ratio.low
        high = ratio.mean if ratio.high is None else ratio.high
        panel.errorbar(  # type: ignore[attr-defined]
            x + shift,
            ratio.mean,
            yerr=[[max(0, ratio.mean - low)], [max(0, high - ratio.mean)]],
            fmt=_MARKERS[scenario],
            color=_COLOURS[scenario],
            markersize=5,
            capsize=3,
            label=name if x == 0 else None,
        )


def _aa(panel: object, result: Result, sizes: list[int]) -> None:
    """How far two equal engines are apart, as a band around 1."""
    for x, size in enumerate(sizes):
        row = _row(result.rows[size], AA)
        if row is None:
            continue
        ratio = row.ratios["tokens_per_s"]
        ends = [ratio.mean if ratio.low is None else ratio.low, ratio.mean if ratio.high is None else ratio.high]
        # Which of the two is called A is chance.
        far = max(max(end, 1 / end) for end in ends)
        panel.fill_between(  # type: ignore[attr-defined]
            [x - 0.4, x + 0.4],
            1 / far,
            far,
            color=_GREY,
            alpha=0.2,
            linewidth=0,
            label="two plain engines apart (A/A)" if x == 0 else None,
        )
