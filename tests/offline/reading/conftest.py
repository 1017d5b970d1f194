"""A tiny random model with a random probe of its states, and texts for it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm.probe import Probe
from emovllm_offline.data.texts import Text
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.model.load import LoadedModel
from emovllm_offline.model.spec import model_fingerprint, model_spec
from emovllm_offline.reading.reader import Reader
from support.circuits import random_circuit
from support.probes import random_probe

LABELS = ("boredom", "calm", "pride")
WORDS = ("the", "a", "dog", "cat", "walks", "runs", "home", "late", "early", "then", "good", "bad", "proud", "dull")


@pytest.fixture
def loaded(decoder: Decoder, tokenizer: Any) -> LoadedModel:
    return LoadedModel(decoder.model, tokenizer, "tiny/model")


@pytest.fixture
def probe(decoder: Decoder) -> Probe:
    """Of the layers 1 to 3; the last is its own."""
    return random_probe(LABELS, (1, 2, 3), model_spec(decoder, "tiny/model"), model_fingerprint(decoder))


@pytest.fixture
def reader(loaded: LoadedModel, probe: Probe) -> Reader:
    return Reader.of(loaded, probe)


@pytest.fixture
def circuit(decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Circuit:
    """Of random units in all layers, strong enough to change replies."""
    folder = tmp_path_factory.mktemp("circuit")
    decoder.model.save_pretrained(folder / "model")
    return load_circuit(random_circuit(folder / "model", folder / "circuit", names=LABELS, scale=2.0))


@pytest.fixture
def labelled() -> list[Text]:
    """Two texts in each group."""
    draw = random.Random(0)
    return [Text(" ".join(draw.choices(WORDS, k=4)), (draw.choice(LABELS),), f"{i // 2}") for i in range(30)]
