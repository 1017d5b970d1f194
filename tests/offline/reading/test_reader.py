from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emovllm.errors import CheckpointError, ProbeError
from emovllm.probe import Probe
from emovllm_offline.data.texts import Text
from emovllm_offline.model.load import LoadedModel
from emovllm_offline.reading.prompts import reads_of
from emovllm_offline.reading.reader import Reader
from emovllm_offline.reading.states import states_of


def test_each_layers_probe_reads_the_states_after_its_layer(
    reader: Reader, labelled: list[Text], tokenizer: Any, tmp_path: Path
) -> None:
    reads = reads_of(tokenizer, [text.text for text in labelled], "last", chat=False)
    logits = reader.logits(reads, tmp_path / "l", {}, tokens=16, shown=False)
    assert logits.shape == (len(labelled), 3, 3)
    for text in (0, 7, 29):
        states = states_of(reader.decoder, [reads[text]])
        for at, layer in enumerate((1, 2, 3)):
            expected = reader.probe.at(layer).logits(states[layer, 0])
            np.testing.assert_allclose(logits[text, at], expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(CheckpointError, match="other settings: texts"):
        reader.logits(reads, tmp_path / "l", {"texts": "others"}, tokens=16, shown=False)


@pytest.mark.parametrize("what", ["weights", "shape", "projections"])
def test_a_probe_of_another_model_is_refused(
    loaded: LoadedModel, probe: Probe, tiny: Callable[[str], Any], what: str
) -> None:
    why = {"weights": "its fingerprint is", "shape": "hidden_size 8, here 32", "projections": "projections are others"}
    if what == "weights":
        torch.manual_seed(1)
        for layer in loaded.network.model.layers:
            torch.nn.init.normal_(layer.mlp.down_proj.weight, std=0.3)
            torch.nn.init.normal_(layer.self_attn.o_proj.weight, std=0.3)
    elif what == "shape":
        spec = probe.spec.model_copy(update={"model": probe.spec.model.model_copy(update={"hidden_size": 8})})
        narrow = {name: getattr(probe, name)[..., :8] for name in ("mean", "scale", "weight")}
        probe = dataclasses.replace(probe, spec=spec, **narrow)
    else:
        probe = dataclasses.replace(probe, fingerprint={"mlp.0": probe.fingerprint["mlp.0"]})
    with pytest.raises(ProbeError, match=rf"the probe is of tiny/model.*{why[what]}"):
        Reader.of(loaded, probe)


def test_weights_that_are_rounded_otherwise_are_taken_and_told(loaded: LoadedModel, probe: Probe) -> None:
    assert Reader.of(loaded, probe).distance < 1e-5
    loaded.network.bfloat16()
    assert 1e-5 < Reader.of(loaded, probe).distance < 0.02
