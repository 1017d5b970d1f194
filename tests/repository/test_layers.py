"""Who may import whom, read from the sources: imports within functions and for types count too."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "emovllm": ROOT / "emovllm",
    "emovllm_server": ROOT / "server/emovllm_server",
    "emovllm_offline": ROOT / "offline/emovllm_offline",
}
# Of the offline part, from those that import to those that are imported; within one, all may import one another.
LAYERS = [
    {"commands", "api", "building"},
    {"comparison"},
    {"validation", "evaluation", "discovery", "refinement", "labelling"},
    {"reading"},
    {"judges"},
    {"model"},
    {"endpoint"},
    {"data"},
    {"storage", "reporting", "intervals"},
]


def modules() -> dict[str, Path]:
    return {
        ".".join((name, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*.py")
    }


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module


def imports() -> list[tuple[str, str]]:
    """Each of our modules with each of our modules that it imports."""
    known = modules()
    return [
        (module, target)
        for module, path in known.items()
        for target in imported(path, known)
        if target.split(".")[0] in PACKAGES
    ]


def layer(module: str) -> int | None:
    part = module.split(".")[1] if "." in module else ""
    return next((number for number, names in enumerate(LAYERS) if part in names), None)


def test_no_imports_go_in_a_circle() -> None:
    """A package names what it exports for types alone: it imports that when it is asked for."""
    known = modules()
    needed: dict[str, set[str]] = {module: set() for module in known}
    for module, target in imports():
        place = target if target in known else target.rpartition(".")[0]
        if not (known[module].name == "__init__.py" and place.startswith(f"{module}.")):
            needed[module].add(place)
    assert len(list(graphlib.TopologicalSorter(needed).static_order())) == len(known)


def test_no_function_takes_more_than_eight_parameters_and_no_module_is_long() -> None:
    long, wide, functions = [], [], 0
    for module, path in modules().items():
        source = path.read_text()
        if len(source.splitlines()) > 300:
            long.append(module)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions += 1
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if len([one for one in given if one.arg not in ("self", "cls")]) > 8:
                    wide.append(f"{module}.{node.name}")
    assert (long, wide) == ([], [])
    assert functions > 1000


def test_no_field_has_the_name_of_a_method_of_pydantic() -> None:
    """It would warn whoever runs a command that loads the class."""
    models = [
        node
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and any(isinstance(base, ast.Name) for base in node.bases)
    ]
    names = {
        field.target.id
        for model in models
        for field in model.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
    assert "register_" in names
    assert [name for name in sorted(names) if hasattr(BaseModel, name) and name != "model_config"] == []


def test_emovllm_knows_neither_server_nor_offline_but_in_its_command() -> None:
    other = {(module, target) for module, target in imports() if module.split(".")[0] == "emovllm"}
    assert {module for module, target in other if target.split(".")[0] != "emovllm"} <= {"emovllm.cli"}
    assert len(other) > 30


def test_server_and_offline_do_not_know_each_other() -> None:
    pair = {"emovllm_server", "emovllm_offline"}
    assert [edge for edge in imports() if {edge[0].split(".")[0], edge[1].split(".")[0]} == pair] == []


def test_every_room_of_the_offline_part_has_a_layer() -> None:
    rooms = {module for module in modules() if module.startswith("emovllm_offline.")}
    assert [module for module in sorted(rooms) if layer(module) is None] == []


def test_layers_of_the_offline_part_run_one_way() -> None:
    offline = [edge for edge in imports() if all(name.startswith("emovllm_offline.") for name in edge)]
    assert len(offline) > 100
    upward = {
        (module, ".".join(target.split(".")[:2]))
        for module, target in offline
        if (of := layer(module)) is not None and (to := layer(target)) is not None and to < of
    }
    assert upward == set()
