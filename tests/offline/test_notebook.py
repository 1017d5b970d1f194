"""The notebook of examples/, run as its readers run it, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import emovllm
from emovllm import load_circuit
from support.models import tiny_chat_model

NOTEBOOK = Path(emovllm.__file__).parents[1] / "examples" / "find_a_circuit.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[nbformat.NotebookNode, Path]:
    folder = tmp_path_factory.mktemp("notebook")
    model = tiny_chat_model(folder / "model", max_position_embeddings=2048)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    assert {line.split(" = ")[0] for line in settings.source.splitlines()} == {"MODEL", "SCENARIOS", "OUT"}
    settings.source = f"MODEL = {model!r}\nSCENARIOS = 1\nOUT = {str(folder / 'circuit')!r}"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook, folder / "circuit"


@pytest.mark.slow
def test_the_notebook_saves_the_circuit_that_it_finds(executed: tuple[nbformat.NotebookNode, Path]) -> None:
    circuit = load_circuit(executed[1])
    assert len(circuit.names) == 6
    assert all(len(units) for units in circuit.neurons.values())


@pytest.mark.slow
def test_the_notebook_shows_figures_tables_and_replies(executed: tuple[nbformat.NotebookNode, Path]) -> None:
    outputs = [output for cell in executed[0].cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    text = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    assert all(f"{name}: " in text for name in ("none", *load_circuit(executed[1]).names))


@pytest.mark.slow
def test_the_notebook_tells_its_progress_without_widgets(executed: tuple[nbformat.NotebookNode, Path]) -> None:
    outputs = [output for cell in executed[0].cells for output in cell.get("outputs", ())]
    told = "".join(output.get("text", "") for output in outputs if output.get("name") == "stderr")
    assert "activations: 3 of 3 groups" in told
    assert not any("ipywidgets" in str(output.get("data", "")) for output in outputs)


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
