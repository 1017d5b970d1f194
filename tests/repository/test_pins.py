"""The pins of GPU environments, which the tests install nowhere: they resolve for every Python that is promised."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("gpu", "smollm2", "offline", "evaluate", "docs", "dev")
PINS = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (SCRIPTS / "constraints-gpu.txt").read_text(), re.MULTILINE))


def promised() -> list[str]:
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()  # type: ignore[union-attr]
    return [f"3.{minor}" for minor in range(int(low), int(high))]


@pytest.mark.slow
@pytest.mark.parametrize("python", promised())
def test_the_gpu_environment_resolves(python: str, tmp_path: Path) -> None:
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert uv is not None, "scripts/env makes environments with uv"
    command = [
        uv,
        "pip",
        "compile",
        "--quiet",
        "--python-version",
        python,
        "--python-platform",
        "x86_64-manylinux_2_28",
    ]
    command += [word for extra in EXTRAS for word in ("--extra", extra)]
    command += ["--constraints", str(SCRIPTS / "constraints-gpu.txt")]
    command += [word for name in ("", "-gpu") for word in ("--overrides", str(SCRIPTS / f"overrides{name}.txt"))]
    resolved = subprocess.run([*command, str(ROOT / "pyproject.toml")], capture_output=True, text=True, check=False)
    assert resolved.returncode == 0, resolved.stderr[-2000:]
    versions = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", resolved.stdout, re.MULTILINE))
    assert versions["vllm"] == PINS["vllm"]
    others = {name: version for name, version in versions.items() if PINS.get(name, version) != version}
    # What is not pinned for the oldest Python has no newer version there.
    assert python == "3.11" or not others, others
    assert len(others) < 5


def test_no_two_packages_bring_the_bindings_of_cuda() -> None:
    # Up to 12.7 cuda-python brought its own, into the same files.
    assert "cuda-bindings" in PINS
    assert tuple(map(int, PINS["cuda-python"].split(".")[:2])) >= (12, 8)
    assert PINS["cuda-python"].split(".")[0] == PINS["cuda-bindings"].split(".")[0] == "13"
