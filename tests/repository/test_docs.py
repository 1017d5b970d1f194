"""The README and the docs name what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import emovllm

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Folders of the repository: what begins with one of them is a path in it.
TOP = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name != "site")
PATH = re.compile(
    rf"(?:{'|'.join(map(re.escape, TOP))}|\.ci)/[\w./-]*|mkdocs\.yml|pyproject\.toml|CITATION\.cff|Dockerfile"
)

# Options of commands that name files or folders.
FILES = {"--circuit", "--out", "--replies", "--data"}


def named_paths(text: str) -> list[str]:
    """The repository's paths that stand in backticks or in a block of commands, alone or among other words."""
    blocks = re.findall(r"(?s)```\n(.*?)```", text)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"(?s)```.*?```", "", text))
    words = [word for span in [*spans, *blocks] for word in span.split()]
    return [word.rstrip(".") for word in words if PATH.fullmatch(word)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_repository_path_in_backticks_exists(page: Path) -> None:
    assert [path for path in named_paths(page.read_text()) if not (ROOT / path).exists()] == []


def test_paths_in_backticks_are_seen() -> None:
    seen = [path for page in PAGES for path in named_paths(page.read_text())]
    assert len(seen) >= 20
    assert named_paths("`tests/gone.py`, `python benchmarks/a.py` and `emovllm serve`") == [
        "tests/gone.py",
        "benchmarks/a.py",
    ]


def test_every_link_of_the_readme_leads_to_a_file() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / "README.md").read_text())
    assert len(links) >= 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_citation_is_of_this_version_and_of_both_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == emovllm.__version__
    papers = [reference["identifiers"][0]["value"] for reference in citation["references"]]
    assert papers == ["arXiv:2510.11328", "arXiv:2510.04064"]


def test_the_pages_of_results_are_dated() -> None:
    pages = sorted((ROOT / "docs/results").glob("*.md"))
    assert len(pages) >= 5
    assert [page.name for page in pages if not re.search(r"20\d\d-\d\d-\d\d", page.read_text())] == []


def test_the_reference_of_commands_is_what_they_say() -> None:
    command = [sys.executable, ROOT / "scripts/cli_reference", "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    page = (ROOT / "docs/reference/cli.md").read_text()
    for told in ("## `emovllm serve`", "* `--circuit-root DIR`: ", "## `emovllm discover`", "* `--judge-model M`: "):
        assert told in page


def test_the_script_that_remakes_the_default_circuit_has_the_commands_of_the_docs() -> None:
    script = (ROOT / "scripts/make_default_circuit").read_text()
    page = (ROOT / "docs/results/discovery.md").read_text()
    commands = [line for line in script.splitlines() if line.startswith("emovllm ")]
    assert len(commands) == 7
    assert "\n".join(commands) in page
    # Those that the circuit itself tells of, but for the names of files.
    provenance = json.loads((ROOT / "circuits/SmolLM2-135M-Instruct/circuit.json").read_text())["provenance"]
    made = [provenance, *provenance["refinements"], provenance["calibration"]]
    told = [_options(part["command"]) for part in made]
    assert told == [_options(line) for line in commands if not line.startswith("emovllm own-replies")]


def _options(command: str) -> tuple[str, dict[str, str]]:
    """A command, and the options of it that are no files."""
    _, name, *words = command.split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    return name, {option: value for option, value in given.items() if option not in FILES}
