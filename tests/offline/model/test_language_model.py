"""A language model beside the tower of another modality is measured as it is alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from emovllm.circuit_files import load_circuit
from emovllm_offline.discovery.discover import discover
from emovllm_offline.discovery.parameters import Parameters
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import load_network
from offline.conftest import SHAPE
from support.families import WRAPPERS, wrapper_network
from support.walk import EMOTIONS, Walk

# The others' language models are none that Transformers has alone.
BARE = ["gemma3", "mistral3", "qwen3_5"]


@pytest.fixture(params=BARE)
def wrapped_and_bare(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model with a tower, and a text model with the same weights."""
    wrapped = wrapper_network(request.param, **SHAPE)
    bare = AutoModelForCausalLM.from_config(wrapped.config.get_text_config(), dtype=torch.float32).eval()
    bare.model.load_state_dict(wrapped.model.language_model.state_dict())
    bare.lm_head.load_state_dict(wrapped.lm_head.state_dict())
    return wrapped, bare


def test_scores_are_those_of_the_language_model_alone(wrapped_and_bare):
    ids = torch.tensor([[5, 9, 17, 33, 65, 9]])
    with torch.no_grad():
        wrapped, bare = (find_decoder(model).scores(ids) for model in wrapped_and_bare)
    torch.testing.assert_close(wrapped, bare)
    assert wrapped.std() > 0


def test_it_is_loaded_from_its_folder(wrapped_and_bare, tmp_path):
    wrapped, bare = wrapped_and_bare
    wrapped.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 9, 17, 33, 65, 9]])
    with torch.no_grad():
        # Of Qwen 3.5, Transformers loads the language model alone.
        loaded, alone = (find_decoder(model).scores(ids) for model in (load_network(tmp_path), bare))
    torch.testing.assert_close(loaded, alone)


def test_the_circuit_is_that_of_the_language_model_alone(wrapped_and_bare, tokenizer, records, style):
    parameters = Parameters(importance_prompts=2)
    wrapped, bare = (
        discover(model, tokenizer, records, [style], parameters=parameters, model_id="tiny")
        for model in wrapped_and_bare
    )
    assert wrapped.sites() == bare.sites()
    assert wrapped.sites()
    for key, entries in bare.fingerprint.items():
        torch.testing.assert_close(torch.tensor(wrapped.fingerprint[key]), torch.tensor(entries))


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_command_takes_it(name: str, tmp_path: Path) -> None:
    network = wrapper_network(name)
    walk = Walk(tmp_path, network)
    assert walk.discover(tmp_path / "circuit") == 0
    circuit = load_circuit(tmp_path / "circuit")
    layers = find_decoder(network).layers
    assert circuit.names == EMOTIONS
    assert {kind for kind, _ in circuit.sites()} == {"attn", "mlp"}
    assert circuit.spec.model.per_layer("neurons") == [layer.neurons for layer in layers]
    assert circuit.spec.model.per_layer("heads") == [layer.heads for layer in layers]
