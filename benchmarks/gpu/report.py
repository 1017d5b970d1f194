"""The figures as Markdown: `python report.py FOLDER` reads what the kit wrote there and prints a page.

`exactness.json`, `profile.json`, and `speed-*.json`, each the result.json of an `emovllm bench`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(report(parser.parse_args().folder))


def report(folder: Path) -> str:
    sections = []
    if (folder / "exactness.json").exists():
        sections.append(exactness(json.loads((folder / "exactness.json").read_text())))
    for path in sorted(folder.glob("speed-*.json")):
        sections.append(speed(path.stem.removeprefix("speed-"), json.loads(path.read_text())))
    if (folder / "profile.json").exists():
        sections.append(profile(json.loads((folder / "profile.json").read_text())))
    if not sections:
        raise SystemExit(f"{folder}: no exactness.json, speed-*.json or profile.json")
    return "\n\n".join("\n".join(lines) for lines in sections)


def exactness(made: dict[str, Any]) -> list[str]:
    about = made["machine"]
    lines = [
        "### Exactness",
        "",
        f"{about['gpu']}, vLLM {about['vllm']}, PyTorch {about['torch']}. {made['requests']} requests in one batch "
        f"(six emotions, blends, negative and zero strength, none, every scope), {made['tokens']} greedy tokens each, "
        f"against Hugging Face with hooks, one request at a time; the circuit changes the replies to {made['moved']}.",
        "",
    ]
    rows = [
        [name, row.get("attention", ""), _percent(row.get("equal")), _error(row.get("error_max")), _verdict(row)]
        for name, row in made["float32"].items()
    ]
    lines += table(["float32", "attention", "equal tokens", "largest logprob error", ""], rows)
    rounded = made["bfloat16"]
    rows = []
    for kind in ("plain", "steered"):
        for name, source in (("vLLM", rounded.get(kind, {})), ("Hugging Face", rounded.get(f"reference, {kind}", {}))):
            for against in ("float32", "bfloat16"):
                if found := source.get(f"against {against}"):
                    cells = [_percent(found["equal"]), _error(found["error_mean"]), _error(found["error_max"])]
                    rows.append([f"{name}, {kind}", f"Hugging Face in {against}", *cells])
    if rows:
        heads = ["bfloat16", "against", "tokens before the first other one", "mean logprob error", "largest"]
        lines += ["", *table(heads, rows)]
    return lines


def speed(name: str, made: dict[str, Any]) -> list[str]:
    settings, engine = made["settings"], made["engine"]
    runner = "V2" if engine.get("v2_model_runner") else "V1"
    lines = [
        f"### Speed: {name}",
        "",
        f"{engine.get('gpu')}, {runner} model runner, CUDA graphs {engine.get('cudagraph')}, {engine.get('dtype')}, "
        f"prompts of {settings['prompt_tokens']} tokens, {settings['output_tokens']} generated, {settings['rounds']} "
        f"rounds{'' if made['complete'] else ' (interrupted)'}. `{made['command']}`",
        "",
    ]
    rows = []
    for size, of_size in made["rows"].items():
        for row in of_size:
            values, ratios = row["values"] or {}, row["ratios"]
            rows.append(
                [
                    size,
                    row["name"],
                    _number(values.get("tokens_per_s")),
                    _ratio(ratios.get("tokens_per_s")),
                    _number(values.get("tpot_ms"), 2),
                    _ratio(ratios.get("tpot_ms")),
                ]
            )
    return lines + table(["batch", "", "tokens/s", "ratio", "ms per token", "ratio"], rows)


def profile(made: dict[str, Any]) -> list[str]:
    lines = [
        "### One decode step",
        "",
        f"{made['gpu']}, vLLM {made['vllm']}, {'V2' if made['v2_model_runner'] else 'V1'} model runner, the shape "
        f"{made['model']}, {made['layers']} layers. Kernels that a step runs, by PyTorch's profiler:",
        "",
    ]
    rows = []
    for graphs, by_size in made["differences"].items():
        for size, found in by_size.items():
            plain, steered = (made["modes"][graphs][kind][size] for kind in ("plain", "steered"))
            rows.append(
                [
                    graphs,
                    size,
                    *(_number(sum(side["kernels"].values()), 1) for side in (plain, steered)),
                    f"{found['extra_per_layer']:+.2f}",
                    *(_number(side["step_ms"], 3) for side in (plain, steered)),
                    f"{found['time']:.3f}",
                ]
            )
    heads = ["", "batch", "kernels, plain", "steered", "more per layer", "ms per step, plain", "steered", "ratio"]
    lines += table(heads, rows)
    for graphs, by_size in made["differences"].items():
        size, found = max(by_size.items(), key=lambda item: int(item[0]))
        changed = [[f"`{name}`", f"{change:+g}"] for name, change in found["changed"].items()]
        if changed:
            lines += ["", f"Kernels that differ, {graphs}, batch {size}:", "", *table(["kernel", "per step"], changed)]
    return lines


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def _verdict(row: dict[str, Any]) -> str:
    return "exact" if row["exact"] else row.get("error", "not exact")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def _error(value: float | None) -> str:
    return "" if value is None or math.isinf(value) else f"{value:.1e}"


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _ratio(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    interval = "" if value["low"] is None else f" ({value['low']:.3f} to {value['high']:.3f})"
    return f"{value['mean']:.3f}{interval}"


if __name__ == "__main__":
    main()
