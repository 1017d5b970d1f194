"""A language model beside the tower of another modality is measured as it is alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from emovllm_offline.discovery.discover import discover
from emovllm_offline.discovery.parameters import Parameters
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import load_network
from offline.conftest import SHAPE

TEXT = {key: value for key, value in SHAPE.items() if value is not None and key != "rotary_dim"}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
CONFIGS = {
    "gemma3": {"text_config": TEXT, "vision_config": TOWER, "mm_tokens_per_image": 4},
    "mistral3": {
        "text_config": {**TEXT, "model_type": "mistral"},
        "vision_config": {**TOWER, "model_type": "pixtral", "head_dim": 8},
    },
}


@pytest.fixture(params=CONFIGS)
def wrapped_and_bare(request):
    """A model with a tower, and a text model with the same weights."""
    config = AutoConfig.for_model(request.param, **CONFIGS[request.param])
    torch.manual_seed(0)
    wrapped = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    bare = AutoModelForCausalLM.from_config(config.get_text_config(), dtype=torch.float32).eval()
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
    wrapped, _ = wrapped_and_bare
    wrapped.save_pretrained(tmp_path)
    network = load_network(tmp_path)
    assert type(network) is type(wrapped)
    assert len(find_decoder(network).layers) == 4


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
