"""Who may import whom, and how fast the command answers."""

from __future__ import annotations

import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import emovllm
from emovllm.architectures import parse_site
from emovllm.cli import own_commands

ROOT = Path(emovllm.__file__).parent.parent
BLOCKED = "import sys; sys.modules.update({{name: None for name in {names!r}}}); import {module}"
FORMAT = [
    "emovllm",
    "emovllm.circuit",
    "emovllm.circuit_files",
    "emovllm.files",
    "emovllm.emotion",
    "emovllm.fields",
    "emovllm.phases",
    "emovllm.architectures",
    "emovllm.baseline",
    "emovllm.models",
    "emovllm.show",
]
FORMAT += ["emovllm.cli", "emovllm.plugin"]
SLOW_TO_IMPORT = {"torch", "transformers", "vllm", "scipy", "sklearn", "matplotlib", "openai", "fastapi"}
SLOW_TO_IMPORT |= {"aiohttp", "httpx", "huggingface_hub", "prometheus_client", "tokenizers"}
OFFLINE = sorted(
    ".".join(path.relative_to(ROOT / "offline").with_suffix("").parts)
    for path in (ROOT / "offline/emovllm_offline").rglob("*.py")
    if path.stem[0] != "_"
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", FORMAT)
def test_the_format_needs_neither_torch_nor_vllm(module: str) -> None:
    result = run(BLOCKED.format(names=["torch", "vllm", "transformers"], module=module))
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_offline_needs_no_vllm_and_no_server() -> None:
    result = run(BLOCKED.format(names=["vllm", "emovllm_server"], module=", ".join(OFFLINE)))
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_server_needs_no_offline() -> None:
    result = run(BLOCKED.format(names=["emovllm_offline"], module="emovllm_server.serve, emovllm_server.api.routes"))
    assert result.returncode == 0, result.stderr


def test_templates_are_in_the_wheel() -> None:
    """hatchling takes every file of a listed package, unless it is told otherwise."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert not {"include", "exclude", "only-include"} & set(wheel)
    templates = [path for path in (ROOT / "offline").rglob("*.j2") if ".venv" not in path.parts]
    assert len(templates) >= 4
    for path in templates:
        assert any(path.is_relative_to(ROOT / package) for package in wheel["packages"]), path


def seconds(words: list[str]) -> tuple[float, str]:
    """The time of the processor that a command takes, and what it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.run(words, capture_output=True, check=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, said


@pytest.mark.parametrize("command", [None, *own_commands()])
def test_help_answers_at_once(command: str | None) -> None:
    """Half a second where nothing else runs: what that takes is asked, for the clock depends on the machine."""
    words = [*(command.split() if command else []), "--help"]
    code = f"import sys; from emovllm.cli import main; main({words!r}); print('loaded', *sys.modules)"
    said = run(code).stdout
    assert said.startswith(f"Usage: emovllm {command or 'COMMAND'}")
    assert not set(said.split("\nloaded ")[1].split()) & SLOW_TO_IMPORT


def test_help_takes_little_more_than_what_options_are_made_of() -> None:
    # The slowest, which loads a judge's options. Thrice is usual, PyTorch alone would make it ten.
    took = min(seconds([str(Path(sys.executable).with_name("emovllm")), "elicit", "--help"])[0] for _ in range(3))
    usual = min(seconds([sys.executable, "-c", "import cyclopts, numpy, pydantic"])[0] for _ in range(3))
    assert took < 6 * usual


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("model.layers.3.mlp.down_proj", ("mlp", 3)),
        ("language_model.model.layers.11.self_attn.o_proj", ("attn", 11)),
        ("model.layers.0.mlp.down_proj.base_layer", ("mlp", 0)),
        ("transformer.h.7.mlp.dense_4h_to_h", ("mlp", 7)),
        ("model.layers.3.mlp.experts.0.down_proj", None),
        ("model.layers.3.mlp.gate_up_proj", None),
        ("visual.blocks.2.mlp.down_proj", None),
        ("lm_head", None),
    ],
)
def test_sites_are_known_by_name(name: str, site: tuple[str, int] | None) -> None:
    assert parse_site(name) == site


def test_an_environment_with_a_gpu_has_what_models_of_text_and_images_import() -> None:
    scripts = Path(__file__).parents[2] / "scripts"
    pinned = dict(line.split("==") for line in (scripts / "constraints-gpu.txt").read_text().split() if "==" in line)
    left_out = {
        platform: [
            line.split(" ;")[0]
            for name in ("overrides.txt", f"overrides-{platform}.txt")
            for line in (scripts / name).read_text().splitlines()
            if line and not line.startswith("#")
        ]
        for platform in ("cpu", "gpu")
    }
    # Builds for another PyTorch break Transformers: 0.28 is that of 2.13.
    assert (pinned["torch"], pinned["torchvision"]) == ("2.13.0", "0.28.0")
    assert "torchvision" not in left_out["gpu"]
    assert {"torchvision", "torchaudio", *left_out["gpu"]} == set(left_out["cpu"])
