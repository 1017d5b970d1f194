"""The probe's file: written, read, and refused where it is not one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from emovllm.errors import ProbeError
from emovllm.probe import (
    NAME,
    Probe,
    ProbeSpec,
    fingerprint_of,
    load_probe,
    mark,
    probabilities,
    save_probe,
)
from support.probes import random_probe
from support.specs import ANY_MODEL

LABELS = ("neutral", "anger", "fear")


@pytest.fixture
def probe() -> Probe:
    return random_probe(LABELS, (0, 2), ANY_MODEL.model_copy(update={"hidden_size": 8, "num_hidden_layers": 3}))


def test_a_probe_reads_back_as_it_was_written(probe: Probe, tmp_path: Path) -> None:
    assert save_probe(probe, tmp_path / "new") == tmp_path / "new" / NAME
    for source in (tmp_path / "new", str(tmp_path / "new" / NAME)):
        loaded = load_probe(source)
        assert loaded.spec == probe.spec
        assert loaded.digest == probe.digest
        for name in ("mean", "scale", "weight", "bias"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(probe, name))
        np.testing.assert_array_equal(loaded.fingerprint["mlp.0"], probe.fingerprint["mlp.0"])


def test_the_digest_follows_what_is_read(probe: Probe) -> None:
    other = dataclasses.replace(probe, bias=probe.bias + 1)
    assert other.digest != probe.digest
    assert dataclasses.replace(probe).digest == probe.digest


def test_the_best_layer_is_read_where_none_is_named(probe: Probe) -> None:
    assert probe.at().layer == probe.spec.layer == 2
    assert probe.at(0).layer == 0
    with pytest.raises(ProbeError, match="no probe of layer 1; there are of 0, 2"):
        probe.at(1)


def test_logits_are_those_of_the_standardised_state(probe: Probe) -> None:
    states = np.random.default_rng(1).normal(size=(5, 4, 8)).astype(np.float32)
    layer = probe.at(2)
    expected = [
        [
            sum((state[k] - layer.mean[k]) / layer.scale[k] * layer.weight[j, k] for k in range(8)) + layer.bias[j]
            for j in range(3)
        ]
        for state in states[:, 0]
    ]
    np.testing.assert_allclose(layer.logits(states)[:, 0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(probabilities(layer.logits(states)).sum(-1), 1, rtol=1e-6)


def test_the_fingerprint_is_what_a_site_writes_for_the_mark() -> None:
    weight = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    entries = fingerprint_of([("mlp", 3)], lambda kind, layer: weight)
    assert list(entries) == ["mlp.3"]
    assert entries["mlp.3"].shape == (1, 16)
    np.testing.assert_allclose(entries["mlp.3"][0, -1], mark(6)[0] @ weight[-1], rtol=1e-6)
    for width in (6, 1000):
        assert np.linalg.norm(mark(width)) == pytest.approx(1)
        assert np.count_nonzero(mark(width)) == min(width, 16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda probe: probe.data()[:-3], "incomplete|Error|invalid"),
        (lambda probe: safetensors.numpy.save({"mean": probe.mean}), "its metadata has no 'probe'"),
        (
            lambda probe: safetensors.numpy.save(
                {"mean": probe.mean}, {"probe": probe.spec.model_dump_json(exclude_none=True)}
            ),
            "its tensors are mean, not bias, mean, scale, weight",
        ),
        (lambda probe: safetensors.numpy.save({"mean": probe.mean}, {"probe": '{"labels": 3}'}), "Field required"),
    ],
)
def test_a_file_that_is_no_probe_is_refused_by_name(
    probe: Probe, content: Callable[[Probe], bytes], message: str, tmp_path: Path
) -> None:
    (tmp_path / NAME).write_bytes(content(probe))
    with pytest.raises(ProbeError, match=message) as refused:
        load_probe(tmp_path)
    assert NAME in str(refused.value)


def test_a_folder_without_a_probe_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"probe\.safetensors: No such file"):
        load_probe(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.zeros((2, 7), np.float32)}, r"mean is float32 \[2, 7\], not float32 \[2, 8\]"),
        ({"bias": np.zeros((2, 3))}, "bias is float64"),
        ({"weight": np.full((2, 3, 8), np.nan, np.float32)}, "weight is not finite"),
        ({"scale": np.zeros((2, 8), np.float32)}, "scale is not above 0"),
        ({"fingerprint": {}}, "no fingerprint"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(probe: Probe, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        dataclasses.replace(probe, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("anger", "anger")}, "named twice"),
        ({"layers": (2, 0)}, "not ascending"),
        ({"layers": (0, 3), "layer": 3}, "not ascending ones of 3"),
        ({"layer": 1}, "layer 1 has no probe"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(probe: Probe, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeSpec.model_validate({**probe.spec.model_dump(), **change})
