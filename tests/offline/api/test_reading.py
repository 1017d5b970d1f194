"""Probes of notebooks, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emovllm import probe as probes
from emovllm_offline import train_probe
from emovllm_offline.api import Fitting, ProbeData, ProbeTraining, Reading
from support.models import tiny_chat_model


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> ProbeTraining:
    folder = tmp_path_factory.mktemp("probe")
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
