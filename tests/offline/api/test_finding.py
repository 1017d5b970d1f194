"""The functions of notebooks, on tiny models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import emovllm_offline
from emovllm import load_circuit, save_circuit
from emovllm.errors import EmotionError, ModelError
from emovllm_offline import Control, discover, refine, validate
from emovllm_offline.api import Discovery
from emovllm_offline.refinement.settings import Training
from emovllm_offline.validation.plan import Plan
from support.models import tiny_chat_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_chat_model(tmp_path_factory.mktemp("api") / "model", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def opened(folder: str) -> tuple[object, object]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def discovery(opened: tuple[object, object]) -> Discovery:
    return discover(*opened, limit=1)


def test_a_model_in_memory_and_its_folder_have_the_same_circuit(folder: str, discovery: Discovery) -> None:
    assert discover(folder, limit=1).circuit.digest() == discovery.circuit.digest()


def test_a_circuit_is_saved_and_read_by_the_packages_own_names(discovery: Discovery, tmp_path: Path) -> None:
    save_circuit(discovery.circuit, tmp_path / "circuit")
    assert load_circuit(tmp_path / "circuit").digest() == discovery.circuit.digest()


def test_tables_are_rows_of_plain_values(discovery: Discovery) -> None:
    rows = discovery.table()
    assert [row["emotion"] for row in rows] == list(discovery.circuit.names)
    assert all(type(value) in (str, int) for row in rows for value in row.values())
    assert all(row["neurons"] > 0 for row in rows)


@pytest.mark.parametrize(
    "what", ["importance", "importance_by_alpha", "similarity", "similarity_by_emotion", "units", "overlap"]
)
def test_a_plot_is_a_picture_that_notebooks_show_and_that_is_saved(
    discovery: Discovery, tmp_path: Path, what: str
) -> None:
    picture = discovery.plot(what)  # type: ignore[arg-type]
    picture.save(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes() == picture._repr_png_()
    assert picture.png.startswith(b"\x89PNG")


def test_a_refined_circuit_comes_with_its_losses(discovery: Discovery, opened: tuple[object, object]) -> None:
    refinement = refine(discovery.circuit, *opened, training=Training(epochs=1, held_out=2), limit=4)
    assert refinement.circuit.names == discovery.circuit.names
    assert [row["epoch"] for row in refinement.table()] == [0, 1]
    assert refinement.plot().png.startswith(b"\x89PNG")


def test_a_validation_tells_its_random_control(
    discovery: Discovery, opened: tuple[object, object], tmp_path: Path
) -> None:
    plan = Plan(neurons=(2,), heads=(1,), seeds=2)
    validated = validate(discovery, *opened, out=tmp_path, plan=plan, limit=2)
    assert {row["mode"] for row in validated.table()} == {"ablation", "enhancement"}
    assert all({"change", "random"} <= set(row) for row in validated.table())
    assert validated.plot("sweep").png.startswith(b"\x89PNG")
    assert validated.plot("probe").png.startswith(b"\x89PNG")


def test_control_answers_a_message_with_the_fields_of_requests(
    discovery: Discovery, opened: tuple[object, object]
) -> None:
    model, tokenizer = opened
    control = Control(model, discovery.circuit)  # type: ignore[arg-type]
    plain = control.ask(tokenizer, "Hello.", 12)
    assert control.ask(tokenizer, "Hello.", 12, emotion="anger", emotion_strength=0) == plain
    assert control.ask(tokenizer, "Hello.", 12, emotion={"anger": 2.0, "fear": -1.0}) != plain
    with pytest.raises(EmotionError, match="anger"):
        control.ask(tokenizer, "Hello.", emotion="envy")


def test_a_model_in_memory_needs_its_tokenizer(opened: tuple[object, object]) -> None:
    with pytest.raises(ModelError, match="tokenizer"):
        discover(opened[0])


def test_the_package_lists_its_functions_and_loads_them_when_asked_for() -> None:
    assert set(emovllm_offline.__all__) <= set(dir(emovllm_offline))
    code = "import sys, emovllm, emovllm_offline; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = emovllm_offline.other
