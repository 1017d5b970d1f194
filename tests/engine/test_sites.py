"""Families that vLLM cannot compute in float32 on a CPU: their sites, at least, are found in its own classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

import support.meta_sites
from emovllm.architectures import FAMILIES, parse_experts, parse_site
from support.families import WRAPPERS, family_network, wrapper_network

pytestmark = pytest.mark.engine

SITES = [family for family in FAMILIES if family.served == "sites"]
HEADS_ALONE = [family.model_type for family in SITES if family.mlp is None]
WITH_EXPERTS = [family.model_type for family in SITES if family.experts]
# Qwen's language models stand in models of text and images anyway.
NAMES = [*(family.model_type for family in SITES), "gemma3", "mistral3", "qwen3_5"]


def network(name: str) -> PreTrainedModel:
    return wrapper_network(name) if name in WRAPPERS else family_network(name)


@pytest.fixture(scope="module")
def of_vllm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of each name, the sites in vLLM's class, or why there are none: one process imports vLLM for all of them."""
    root = tmp_path_factory.mktemp("models")
    for name in NAMES:
        network(name).save_pretrained(root / name)
    command = [sys.executable, support.meta_sites.__file__, *(str(root / name) for name in NAMES)]
    # vLLM keeps what it sees of a class, which without the stand-in it could not import.
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "VLLM_CACHE_ROOT": str(root / "cache"),
    }
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert built.returncode == 0, built.stderr[-3000:]
    lines = [line.removeprefix("SITES") for line in built.stdout.splitlines() if line.startswith("SITES")]
    return {Path(folder).name: sites for line in lines for folder, sites in json.loads(line).items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_sites_in_vllms_class_are_those_of_the_model(of_vllm: dict[str, Any], name: str) -> None:
    modules = list(network(name).named_modules())
    expected: list[list[Any]] = [
        [*site, module.weight.shape[1]] for path, module in modules if (site := parse_site(path)) is not None
    ]
    blocks = [(parse_experts(path), module) for path, module in modules if hasattr(module, "experts")]
    routers = [(layer, getattr(module, "gate", None) or module.router) for layer, module in blocks]
    expected += [["experts", layer, router.weight.shape[0]] for layer, router in routers]
    assert of_vllm[name] == sorted(expected)
    has = {"attn": True, "mlp": name not in HEADS_ALONE, "experts": name in WITH_EXPERTS}
    assert {kind for kind, _, _ in expected} == {kind for kind in has if has[kind]}
