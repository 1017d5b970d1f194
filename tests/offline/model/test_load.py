"""Models are loaded one way, in one place."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import mistral_common
import pytest
import torch
from transformers import BloomConfig, Gemma3Config, GPT2Config, MistralConfig, PreTrainedModel, T5Config

import emovllm_offline
from emovllm.cli import app
from emovllm.errors import OptionError, PromptError, UnsupportedModelError
from emovllm.options import published_command
from emovllm_offline.model import decoder as decoder_module
from emovllm_offline.model import load as load_module
from emovllm_offline.model.decoder import weights_digest
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import (
    context_of,
    device_of,
    load,
    load_network,
    load_tokenizer,
    random_network,
    require_in_memory,
    versions,
)
from emovllm_offline.model.options import ModelOptions


@pytest.fixture
def folder(tiny, tokenizer, tmp_path) -> str:
    model = tiny("llama")
    model.config.attention_dropout = 0.5
    model.to(torch.bfloat16).save_pretrained(tmp_path / "private" / "a-model")
    tokenizer.save_pretrained(tmp_path / "private" / "a-model")
    return str(tmp_path / "private" / "a-model")


def test_a_model_comes_ready_to_run_with_its_tokenizer_and_no_private_name(folder):
    network, tokenizer, public_id = load(folder)
    assert not network.training
    assert network.dtype == torch.float32
    assert tokenizer("the dog")["input_ids"]
    assert public_id == "a-model"


def test_the_type_of_the_weights_is_kept_where_asked(folder):
    assert load_network(folder, "auto").dtype == torch.bfloat16
    assert load_network(folder, "float64").dtype == torch.float64


def test_a_random_model_has_the_shape_of_a_folder_without_weights(folder):
    for file in Path(folder).glob("*.safetensors"):
        file.unlink()
    network = random_network(folder)
    assert network.dtype == torch.bfloat16
    assert network.config.num_hidden_layers == 4
    assert not network.training


def test_tokenizer_of_mistral_alone_is_refused_with_what_to_do(tmp_path):
    data = Path(mistral_common.__file__).parent / "data"
    (tmp_path / "tekken.json").symlink_to(data / "tekken_240911.json")
    MistralConfig().save_pretrained(tmp_path)
    with pytest.raises(PromptError, match=r"has Mistral's own tokenizer alone.*chat_template.jinja"):
        load_tokenizer(tmp_path)


def test_mistral_s_folder_for_transformers_is_loaded_with_its_template(tokenizer, tmp_path):
    MistralConfig().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tekken.json").write_text("{}")
    assert load_tokenizer(tmp_path).chat_template == tokenizer.chat_template


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"version": "1.0", "added_tokens": [], "model": {"type": "Newer"}}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": [null, "their_code.Tokenizer"]}}'),
    ],
)
def test_tokenizer_that_does_not_load_is_told_in_a_line(folder, file, text):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (Path(folder) / name).unlink()
    (Path(folder) / file).write_text(text)
    with pytest.raises(PromptError, match=r"cannot be loaded .*take a model folder with tokenizer.json") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_model_without_a_chat_template_is_told_how_it_is_asked(folder, caplog):
    (Path(folder) / "chat_template.jinja").unlink()
    assert load_tokenizer(folder)
    assert "is asked in plain text" in caplog.text


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (MistralConfig(max_position_embeddings=512), 512),
        # Under another name, of the language model beside others, and where there is no limit.
        (GPT2Config(n_positions=48), 48),
        (Gemma3Config(text_config={"max_position_embeddings": 96}), 96),
        (BloomConfig(), None),
    ],
)
def test_how_many_tokens_a_model_takes_is_read_in_its_configuration(config, tokens):
    assert context_of(config) == tokens


def test_no_more_tokens_are_wanted_than_a_model_takes(folder, monkeypatch):
    decoder = find_decoder(load(folder).network)
    assert (decoder.most_tokens(7), decoder.most_tokens(10**6)) == (7, decoder.config.max_position_embeddings)
    monkeypatch.setattr(decoder_module, "context_of", lambda config: None)
    assert decoder.most_tokens(10**6) == 10**6


def test_versions_are_those_that_run():
    assert versions()["torch"] == torch.__version__
    assert list(versions()) == ["emovllm", "torch", "transformers"]


def test_language_models_and_their_tokenizers_are_loaded_nowhere_else():
    # The judges' models are no language models, and lie below this room.
    root = Path(emovllm_offline.__file__).parent
    pattern = re.compile(r"AutoModelForCausalLM\.from_pretrained|AutoTokenizer\.from_pretrained")
    places = {str(path.relative_to(root)) for path in root.rglob("*.py") if pattern.search(path.read_text())}
    assert places == {"model/load.py", "judges/classifier.py", "judges/embeddings.py"}


def test_the_fastest_device_is_the_default(monkeypatch):
    for there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device_of(None).type == name
        assert device_of("cpu").type == "cpu"


@pytest.mark.parametrize(("there", "name"), [(True, "cuda"), (False, "cpu")])
def test_a_model_is_put_on_the_fastest_device(folder, monkeypatch, there, name):
    moves = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(PreTrainedModel, "to", lambda network, device: moves.append(device.type) or network)
    load_network(folder)
    assert moves == [name]


MISSING = [("cuda:1", "sees no CUDA device here"), ("warp", "no device of PyT"), ("xpu:7", "not on this machine")]


@pytest.mark.parametrize(("device", "message"), MISSING)
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match=message):
        load_network(tmp_path / "nothing", device=device)


def test_a_model_that_is_no_causal_language_model_is_refused(tmp_path):
    T5Config(d_model=16, num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"\(t5\) is no causal language model"):
        load_network(tmp_path)


def test_a_model_that_transformers_does_not_know_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "newer-than-this"}')
    with pytest.raises(UnsupportedModelError, match=r"does not know the model of .*newer-than-this"):
        load_network(tmp_path)


def test_a_device_is_published_only_where_it_was_given():
    for given, shown in (([], False), (["--device", "cpu"], True)):
        _, bound, _ = app().parse_args(["discover", "--out", "o", *given], exit_on_error=False, print_error=False)
        assert ("--device" in published_command("discover", bound.arguments["options"])) is shown


def test_a_model_that_is_spread_over_all_devices_is_the_same_model(folder):
    spread, whole = load(folder, device="auto"), load(folder, device="cpu")
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(spread.network(ids).logits, whole.network(ids).logits)
    decoder = find_decoder(spread.network)
    assert weights_digest(decoder) == weights_digest(find_decoder(whole.network))


def test_weights_that_fit_into_no_device_are_refused(folder):
    network = load_network(folder)
    network.lm_head.to_empty(device="meta")
    with pytest.raises(UnsupportedModelError, match="does not fit into the devices"):
        require_in_memory(network, folder)


def test_without_accelerate_auto_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(load_module, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match="pip install accelerate"):
        load_network(folder, device="auto")


def loading_of(options: Any) -> Any:
    """The part of a command's options that says how its model is loaded."""
    if isinstance(options, ModelOptions):
        return options
    parts = [getattr(options, field.name) for field in dataclasses.fields(options)]
    return next(filter(None, (loading_of(part) for part in parts if dataclasses.is_dataclass(part))), None)


@pytest.mark.parametrize("command", ["elicit", "discover", "refine", "validate"])
def test_every_command_that_loads_a_model_takes_its_device_and_type(command):
    needed = {
        "elicit": ["--out", "o"],
        "discover": ["--out", "o"],
        "refine": ["--circuit", "c", "--out", "o"],
        "validate": ["c"],
    }
    words = [command, *needed[command], "--device", "auto", "--dtype", "auto"]
    _, bound, _ = app().parse_args(words, exit_on_error=False, print_error=False)
    loading = loading_of(bound.arguments["options"])
    assert (loading.device, loading.dtype) == ("auto", "auto")
