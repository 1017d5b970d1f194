"""Families that vLLM cannot compute in float32 on a CPU: their sites, at least, are found in its own classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import support.meta_sites
from emovllm.architectures import FAMILIES, candidates, parse_experts, parse_site
from support.families import family_model, family_network

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("family", [family.model_type for family in FAMILIES if family.served == "sites"])
def test_the_sites_in_vllms_class_are_those_of_the_model(tmp_path: Path, family: str) -> None:
    command = [sys.executable, support.meta_sites.__file__, family_model(family, tmp_path / family)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "VLLM_LOGGING_LEVEL": "ERROR"}
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert built.returncode == 0, built.stderr[-3000:]
    line = next(line for line in built.stdout.splitlines() if line.startswith("SITES"))
    modules = list(family_network(family).named_modules())
    expected: list[list[Any]] = [
        [*site, module.weight.shape[1]] for name, module in modules if (site := parse_site(name)) is not None
    ]
    blocks = [(parse_experts(name), module) for name, module in modules if hasattr(module, "experts")]
    expected += [["experts", layer, module.gate.weight.shape[0]] for layer, module in blocks]
    assert json.loads(line.removeprefix("SITES")) == sorted(expected)
    has_experts = candidates(family)[0].experts is not None
    assert {kind for kind, _, _ in expected} == {"attn", "mlp", *(["experts"] if has_experts else [])}
