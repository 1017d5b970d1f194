"""Nothing that is read here is run: no pickle, no evaluation, by name or through a library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import emovllm
from emovllm_server.serve import shipped_circuits

ROOT = Path(emovllm.__file__).parent.parent
PACKAGES = (ROOT / "emovllm", ROOT / "server" / "emovllm_server", ROOT / "offline" / "emovllm_offline")
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# Loaders that unpickle unless told not to, and the argument that tells them.
LOADERS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
ALWAYS = {
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "torch.hub.load",
    "builtins.eval",
    "builtins.exec",
}


def findings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            yield from (f"imports {name}" for name in names if name in LOADERS or name in ALWAYS)
        elif isinstance(node, ast.Call):
            yield from _calls(node)
            continue
        else:
            continue
        yield from (f"imports {name}" for name in names if name.split(".")[0] in MODULES)


def _calls(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    arguments = {keyword.arg: keyword.value for keyword in node.keywords}
    if (isinstance(node.func, ast.Name) and called in BUILTINS) or called in ALWAYS:
        yield f"calls {called}"
    for name, (argument, safe) in LOADERS.items():
        value = arguments.get(argument)
        if called == name and not (isinstance(value, ast.Constant) and value.value is safe):
            yield f"calls {called} without {argument}={safe}"
    trusting = arguments.get("trust_remote_code")
    if trusting is not None and not (isinstance(trusting, ast.Constant) and trusting.value is False):
        yield f"{called} trusts remote code"
    if called in ("importlib.import_module", "import_module") and node.args and isinstance(node.args[0], ast.Constant):
        yield from (
            f"imports {node.args[0].value}" for name in MODULES if str(node.args[0].value).split(".")[0] == name
        )
    if arguments.get("shell") is not None:
        yield f"{called} runs a shell"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_no_package_unpickles_or_evaluates(package: Path) -> None:
    files = sorted(package.rglob("*.py"))
    assert files
    assert {str(path): found for path in files if (found := list(findings(path.read_text())))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import cloudpickle, json",
        "from marshal import load",
        "from torch import load",
        "def f():\n    import dill",
        "importlib.import_module('pickle')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_each_way_would_be_found(source: str) -> None:
    assert list(findings(source))


def test_what_is_safe_is_not_found() -> None:
    for safe in ("model.eval()", "re.compile(t)", "torch.load(p, weights_only=True)", "np.load(p, allow_pickle=False)"):
        assert list(findings(safe)) == []


def test_a_circuit_loads_where_unpickling_is_impossible() -> None:
    folder = shipped_circuits() / "SmolLM2-135M-Instruct"
    code = (
        # What numpy and others need at their import; the circuit needs none of it.
        "import sys, numpy, pydantic, safetensors.numpy, huggingface_hub\n"
        "sys.modules.update(pickle=None, _pickle=None, marshal=None)\n"
        f"from emovllm.circuit_files import load_circuit\nprint(len(load_circuit({str(folder)!r}).names))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "6", result.stderr
