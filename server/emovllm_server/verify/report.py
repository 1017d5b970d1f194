"""What was found: a block to paste into an issue, or JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from emovllm.options import public_command
from emovllm_server.verify.run import Findings

_WORDS = {True: "passed", False: "FAILED", None: "-"}


def as_text(findings: Findings) -> str:
    judged = [verdict for verdict in findings.verdicts if verdict.passed is not None]
    passed = sum(bool(verdict.passed) for verdict in judged)
    width = max(len(verdict.name) for verdict in findings.verdicts)
    lines = [f"emovllm verify: {'passed' if findings.passed else 'FAILED'}, {passed} of {len(judged)} checks"]
    lines += [f"  {v.name:<{width}}  {_WORDS[v.passed]:<6}  {v.told}" for v in findings.verdicts]
    lines += ["", *(f"  {name}: {value}" for name, value in _facts(findings).items())]
    for verdict in findings.verdicts:
        if sites := verdict.figures.get("distance_by_site"):
            lines.append(f"  distance by site: {', '.join(f'{key} {value:.2g}' for key, value in sites.items())}")
    return "\n".join(lines)


def as_json(findings: Findings) -> dict[str, Any]:
    return {
        "passed": findings.passed,
        "verdicts": [dataclasses.asdict(verdict) for verdict in findings.verdicts],
        **_facts(findings),
    }


def _facts(findings: Findings) -> dict[str, Any]:
    """On what it was found; no place on the machine."""
    left_out = {"ranks", "distances", "plugin"}
    engine = {name: value for name, value in findings.engine.items() if name not in left_out and value is not None}
    reference = findings.reference
    return {
        "command": public_command("verify", findings.subject.argv),
        **findings.machine,
        **engine,
        "parameters": reference.get("parameters"),
        "reference": f"Transformers with hooks, {reference.get('dtype')}, {reference.get('device')}",
    }
