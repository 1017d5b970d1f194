"""What a probe reads while the engine writes, where it is not what circuits are tested with too: alone, of layers of
choice, in streams. That it equals Hugging Face's states in every mode is in test_runners.py, test_modes.py,
test_parallel.py, test_steering.py and test_exactness.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emovllm.circuit_files import load_circuit
from emovllm.emotion import KEY
from emovllm.probe import fingerprint_of, load_probe, save_probe
from support.circuits import random_circuit
from support.engine import Ask, EngineError, assert_same
from support.oracle import Oracle
from support.probes import random_probe
from support.series import Series, mixed_batch, reading, unsteered

pytestmark = pytest.mark.engine

TOKENS = 12
READ = {"emotion_readout": "tokens"}


@pytest.fixture(scope="module")
def oracle(model: str, circuit: Path) -> Oracle:
    return Oracle(model, circuit)


def of(**settings: Any) -> dict[str, Any]:
    return {"additional_config": {KEY: settings}}


def all_read(asks: list[Ask]) -> list[Ask]:
    return [Ask(ask.prompt, {**ask.fields, **READ}) for ask in asks]


def test_a_probe_alone_reads_the_plain_model_and_adds_nothing(
    series: Series, model: str, circuit: Path, oracle: Oracle
) -> None:
    asks = unsteered(mixed_batch())
    plain = series.start(model, None).generate(asks, TOKENS)
    engine = series.start(model, None, **of(probe=str(circuit)))
    assert engine.vectors() == {}
    assert_same(engine.generate(all_read(asks), TOKENS), oracle.generate(all_read(asks), TOKENS))
    assert_same(engine.generate(asks, TOKENS), plain, tolerance=0)
    with pytest.raises(EngineError, match="this server has a probe alone, and no circuit"):
        engine.generate([Ask([3, 4, 5], {"emotion": "anger"})], 1)


def test_a_circuit_that_is_read_by_anothers_probe_after_a_layer_of_choice(
    series: Series, model: str, circuit: Path, tmp_path: Path
) -> None:
    known = load_probe(circuit)
    spec = known.spec.model
    probe = random_probe(("calm", "torn"), (0, 2, 3), spec, known.fingerprint, seed=5)
    save_probe(probe, tmp_path)
    asks = reading(mixed_batch())
    states = {}
    for layer in (0, 3):
        engine = series.start(model, circuit, **of(circuit=str(circuit), probe=str(tmp_path), readout_layer=layer))
        replies = engine.generate(asks, TOKENS)
        oracle = Oracle(model, circuit)
        oracle.probe = probe.at(layer)
        assert_same(replies, oracle.generate(asks, TOKENS))
        states[layer] = [reply.read for reply in replies if reply.read]
    assert not np.allclose(states[0][0], states[3][0], atol=0.1)


def test_without_a_readout_the_graph_is_as_it_was(series: Series, model: str, circuit: Path) -> None:
    engine = series.start(model, circuit, **of(circuit=str(circuit)))
    assert engine.buffers() == {"emotion_vectors", "emotion_coefficients"}
    assert engine.call("collective_rpc", "emotion_report")[0]["read"] == []
    with pytest.raises(EngineError, match="this server reads nothing: start it with --readout"):
        engine.generate([Ask([3, 4, 5], READ)], 1)


def _at(layer: int) -> Callable[[Path, Path], dict[str, Any]]:
    return lambda circuit, _: {"circuit": str(circuit), "readout": True, "readout_layer": layer}


def _of_another_model(circuit: Path, folder: Path) -> dict[str, Any]:
    probe = load_probe(circuit)
    random = np.random.default_rng(3)
    sizes = {"mlp": probe.spec.model.intermediate_size, "attn": probe.spec.model.hidden_size}

    def weight(kind: str, _: int) -> np.ndarray:
        return random.normal(size=(probe.spec.model.hidden_size, sizes[kind])).astype(np.float32)

    save_probe(dataclasses.replace(probe, fingerprint=fingerprint_of([("mlp", 0), ("attn", 1)], weight)), folder)
    return {"circuit": str(circuit), "probe": str(folder)}


def _of_another_size(circuit: Path, folder: Path) -> dict[str, Any]:
    spec = load_circuit(circuit).spec.model.model_copy(update={"hidden_size": 8})
    save_probe(random_probe(("a", "b"), [1], spec), folder)
    return {"circuit": str(circuit), "probe": str(folder)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (_at(9), "no probe of layer 9; there are of 0, 1, 2, 3"),
        (_of_another_model, r"the probe was made for .*, and the weights served here are not that model's"),
        (_of_another_size, "the probe was made for .*hidden_size .* here, 8 there"),
        (lambda circuit, folder: {"circuit": str(circuit), "probe": str(folder)}, "probe.safetensors: No such file"),
        (lambda circuit, _: {"circuit": str(circuit), "readout_layer": 2}, "add --readout, or --probe DIR"),
        (lambda circuit, _: {"readout": True}, "no circuit: name a folder"),
    ],
)
def test_what_cannot_be_read_is_refused_at_start(
    series: Series,
    model: str,
    circuit: Path,
    settings: Callable[[Path, Path], dict[str, Any]],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(EngineError, match=message):
        series.start(model, circuit, **of(**settings(circuit, tmp_path)))


def test_a_circuit_without_a_probe_has_none_to_read_with(series: Series, model: str, tmp_path: Path) -> None:
    bare = random_circuit(model, tmp_path / "bare")
    with pytest.raises(EngineError, match="no circuit has a probe: name the one to read with by --probe DIR"):
        series.start(model, bare, **of(circuit=str(bare), readout=True))
