"""Probes of notebooks, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emovllm import probe as probes
from emovllm_offline import measure_persistence, train_probe
from emovllm_offline.api import Fitting, Persisting, ProbeData, ProbeTraining, Reading
from support.circuits import random_circuit
from support.models import tiny_chat_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe")


@pytest.fixture(scope="module")
def training(folder: Path) -> ProbeTraining:
    rows = [
        {"text": f"Day {i} {mark}", "label": label} for i in range(40) for label, mark in (("joy", "!"), ("calm", "."))
    ]
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return train_probe(
        tiny_chat_model(folder / "model"),
        data=ProbeData(data, limit=60),
        reading=Reading(pooling="mean"),
        fitting=Fitting(penalties=(0.01,)),
    )


def test_a_table_has_a_row_of_plain_values_for_each_layer(training: ProbeTraining) -> None:
    rows = training.table()
    assert [row["layer"] for row in rows] == [0, 1, 2]
    assert [row["layer"] for row in rows if row["chosen"]] == [training.results.layer]
    assert all(type(value) in (int, float, bool) for row in rows for value in row.values())


@pytest.mark.parametrize("what", ["depth", "confusion"])
def test_a_plot_is_a_picture(training: ProbeTraining, what: str) -> None:
    assert training.plot(what).png.startswith(b"\x89PNG")  # type: ignore[arg-type]


def test_what_is_saved_is_what_the_command_writes(training: ProbeTraining, tmp_path: Path) -> None:
    training.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "probe.safetensors",
        "results.json",
        "report.md",
        "report.html",
    }
    saved = probes.load_probe(tmp_path)
    assert saved.digest == training.probe.digest == training.results.digest
    assert (saved.spec.labels, saved.spec.pooling) == (("calm", "happiness"), "mean")


def test_what_a_reply_opens_with_is_followed_over_its_tokens(
    training: ProbeTraining, folder: Path, tmp_path: Path
) -> None:
    circuit = random_circuit(folder / "model", tmp_path / "circuit", names=("calm",))
    settings = Persisting(max_tokens=6, tokens=(1, 6), off_after=(2,), limit=8)
    persisted = measure_persistence(
        str(folder / "model"), probe=training.probe, data=folder / "texts.jsonl", circuit=circuit, settings=settings
    )
    rows = persisted.table()
    conditions = ["unsteered", "prompt_last", "generation", "off after 2"]
    assert [(row["condition"], row["token"]) for row in rows] == [(of, at) for of in conditions for at in (1, 6)]
    for row in rows:
        assert row["excess"] == pytest.approx(row["mean"] - row["control"])
        assert 0 < row["mean"] < 1
    assert persisted.plot().png.startswith(b"\x89PNG")
    persisted.save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"persist.json", "report.md", "report.html"}
