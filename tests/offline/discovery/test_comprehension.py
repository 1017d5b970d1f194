"""Discovery from what the model reads: emotional replies as its user's messages."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emovllm.circuit_files import load_circuit
from emovllm.cli import main
from emovllm.errors import CheckpointError, FindingsError, PromptError, StyleError
from emovllm_offline.data import sev
from emovllm_offline.data.styles import Frame, Style
from emovllm_offline.discovery.assembly import EXTRACTIONS
from emovllm_offline.discovery.discover import discover, measure, measure_until
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.discovery.groups import extracted, groups
from emovllm_offline.discovery.measure import measure_activations
from emovllm_offline.discovery.parameters import Measurement, Parameters
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.validation.results import findings_digest

Command = Callable[..., int]
READING = Parameters(importance_prompts=2, extract="comprehension")
WRITING = Parameters(importance_prompts=2)


def of_a_plain_forward(model: Any, tokenizer: Any, text: str, span: slice) -> dict[str, np.ndarray]:
    """By Hugging Face alone: the message in the model's own template, read at its words. [layers, width] each."""
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
    words = tokenizer.convert_ids_to_tokens(ids)
    first = words.index("<user>") + 1
    assert words[first : first + len(text.split())] == text.split()
    own = list(range(first, first + len(text.split())))[span]
    seen: dict[str, list[np.ndarray]] = {"neurons": [], "heads": []}

    def keep(name: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        return lambda module, arguments: seen[name].append(arguments[0][0, own].mean(0).numpy())

    hooks = []
    for layer in model.model.layers:
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(keep("neurons")))
        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(keep("heads")))
    with torch.no_grad():
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    after_each = [state[0, own].mean(0).numpy() for state in hidden[1:-1]]  # the last is that after the final norm
    return {"mlp": np.stack(after_each), **{name: np.stack(rows) for name, rows in seen.items()}}


def test_states_are_those_of_a_plain_forward_over_the_users_message(
    tiny: Any, decoder: Decoder, tokenizer: Any, records: list[sev.Record], reply_style: Style
) -> None:
    steps = extracted(groups(sev.expand(records), [reply_style]), "comprehension")
    means = measure_activations(decoder, tokenizer, steps, 4)
    span = slice(reply_style.reply_tokens.first, reply_style.reply_tokens.last)
    expected = {
        name: [of_a_plain_forward(tiny("llama"), tokenizer, str(frame.reply), span) for frame in frames]
        for name, frames in reply_style.emotions.items()
    }
    for quantity in ("mlp", "neurons", "heads"):
        by_hand = np.stack([np.mean([one[quantity] for one in of], axis=0) for of in expected.values()])
        found = means.mean(quantity)[:, : by_hand.shape[1]]
        np.testing.assert_allclose(found, by_hand, atol=1e-5, rtol=1e-4)
        difference = means.difference(quantity)[:, : by_hand.shape[1]]
        np.testing.assert_allclose(difference, by_hand - by_hand.mean(0), atol=1e-5, rtol=1e-3)
        assert np.abs(difference).max() > 0.01


def test_both_extractions_differ_and_say_which_they_are(
    tiny: Any, tokenizer: Any, records: list[sev.Record], reply_style: Style
) -> None:
    made = {
        parameters.extract: discover(tiny("llama"), tokenizer, records, [reply_style], parameters=parameters)
        for parameters in (WRITING, READING)
    }
    assert made["generation"].digest() != made["comprehension"].digest()
    for extract, circuit in made.items():
        assert circuit.spec.provenance["extraction"] == EXTRACTIONS[extract]
    # Two frames of each emotion for each item: all items have the same replies to read.
    assert made["generation"].spec.provenance["groups"] == 6
    assert made["comprehension"].spec.provenance["groups"] == 1
    plain = Parameters(importance_prompts=2)
    assert discover(tiny("llama"), tokenizer, records, [reply_style], parameters=plain).digest() == (
        made["generation"].digest()
    )


def test_what_a_reply_is_to_is_not_read(
    decoder: Decoder, tokenizer: Any, records: list[sev.Record], reply_style: Style
) -> None:
    found = measure(decoder, tokenizer, records, [reply_style], READING)
    system = {
        "emotions": {
            e: [f.model_copy(update={"system": "always"}) for f in of] for e, of in reply_style.emotions.items()
        }
    }
    other = measure(decoder, tokenizer, records[:1], [reply_style.model_copy(update=system)], READING)
    np.testing.assert_allclose(found.mlp_delta, other.mlp_delta, atol=1e-9)


def test_elicited_replies_are_read_in_place_of_the_styles_own(
    decoder: Decoder, tokenizer: Any, records: list[sev.Record], style: Style
) -> None:
    items = sev.expand(records)
    words = {"calm": "quiet .", "pride": "very good !", "boredom": "dull . so dull ."}
    accepted = {
        item.id: {style.name: {name: {0: f"{text} {number}"} for name, text in words.items()}}
        for number, item in enumerate(items[:2])
    }
    steps = extracted(groups(items, [style], accepted), "comprehension")
    assert [group.texts() for group in steps] == [tuple(f"{text} {n}" for text in words.values()) for n in (0, 1)]
    for group in steps:
        for text, prompt in zip(group.texts(), group.prompts(tokenizer), strict=True):
            read = tokenizer.decode([prompt.ids[place] for place in prompt.positions])
            assert read.split() == tokenizer.decode(tokenizer(text)["input_ids"]).split()
            assert prompt.positions.stop == len(prompt.ids)


def test_a_style_without_replies_has_nothing_to_read(
    decoder: Decoder, tokenizer: Any, records: list[sev.Record], style: Style, reply_style: Style
) -> None:
    with pytest.raises(StyleError, match=r"the style told has no replies that the model could read: .*--replies"):
        measure(decoder, tokenizer, records, [style], READING)
    with pytest.raises(StyleError, match="the style told has no replies"):
        measure(decoder, tokenizer, records, [reply_style, style], READING)


def test_replies_without_a_token_that_counts_or_a_difference_are_refused(
    decoder: Decoder, tokenizer: Any, records: list[sev.Record], reply_style: Style
) -> None:
    def with_replies(*replies: str) -> Style:
        frames = zip(reply_style.emotions, replies, strict=True)
        return reply_style.model_copy(update={"emotions": {name: (Frame(reply=reply),) for name, reply in frames}})

    with pytest.raises(PromptError, match="a reply of 1 tokens has none from 1 on: 'dull'"):
        measure(decoder, tokenizer, records, [with_replies("so quiet", "so proud", "dull")], READING)
    with pytest.raises(PromptError, match="the prompts of all emotions are the same in the style forced"):
        measure(decoder, tokenizer, records, [with_replies("so dull", "so dull", "so dull")], READING)


def test_a_model_without_a_chat_template_reads_them_in_plain_text(
    decoder: Decoder, tokenizer: Any, records: list[sev.Record], reply_style: Style
) -> None:
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    (group,) = extracted(groups(sev.expand(records), [reply_style]), "comprehension")
    for text, prompt in zip(group.texts(), group.prompts(plain), strict=True):
        assert plain.decode([prompt.ids[place] for place in prompt.positions]).split() == text.split()[1:5]
    assert measure(decoder, plain, records, [reply_style], READING).groups == 1


def test_work_of_the_other_extraction_is_refused_by_name(
    decoder: Decoder, tokenizer: Any, records: list[sev.Record], reply_style: Style, tmp_path: Path
) -> None:
    for first, then in ((WRITING, READING), (READING, WRITING)):
        measurement = Measurement(work=tmp_path / first.extract)
        found = measure(decoder, tokenizer, records, [reply_style], first, measurement)
        with pytest.raises(CheckpointError, match=r"activations.safetensors: made with other settings: extract;"):
            measure_until("activations", decoder, tokenizer, records, [reply_style], then, measurement)
        kept = Findings.load(tmp_path / first.extract)
        assert kept.extract == found.extract == first.extract
        assert findings_digest(kept) == findings_digest(found)
        with pytest.raises(FindingsError, match=f"of --extract {first.extract}, not {then.extract}"):
            kept.require_extraction(then.extract)


@pytest.fixture
def command(tmp_path: Path, tiny: Any, tokenizer: Any, records: list[sev.Record], reply_style: Style) -> Command:
    model = tmp_path / "tiny"
    tiny("llama").save_pretrained(model)
    tokenizer.save_pretrained(model)
    data, told = tmp_path / "mine.jsonl", tmp_path / "forced.json"
    data.write_text("".join(record.model_dump_json() + "\n" for record in records))
    told.write_text(reply_style.model_dump_json())
    usual = ["--data", str(data), "--style", str(told), "--out", str(tmp_path / "out"), "--importance-prompts", "2"]
    return lambda *more: main(["discover", str(model), *usual, *more])


def test_the_command_records_its_extraction_where_show_tells_it(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--extract", "comprehension") == 0
    provenance = load_circuit(tmp_path / "out").spec.provenance
    assert provenance["parameters"]["extract"] == "comprehension"
    assert "--extract comprehension" in provenance["command"]
    capsys.readouterr()
    assert main(["show", str(tmp_path / "out")]) == 0
    assert "comprehension: the states while the model reads" in " ".join(capsys.readouterr().out.split())
    whole = (tmp_path / "out" / "circuit.safetensors").read_bytes()
    assert command("--extract", "comprehension", "--stage", "circuit") == 0
    assert (tmp_path / "out" / "circuit.safetensors").read_bytes() == whole


def test_the_command_refuses_the_other_extractions_work(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 0
    assert command("--extract", "comprehension") == 2
    assert "activations.safetensors: made with other settings: extract;" in capsys.readouterr().err
    assert command("--extract", "comprehension", "--stage", "circuit") == 2
    assert "the findings are of --extract generation, not comprehension" in capsys.readouterr().err
    assert command("--extract", "comprehension", "--fresh") == 0
    assert command("--stage", "circuit") == 2
    assert "the findings are of --extract comprehension, not generation" in capsys.readouterr().err


def test_what_was_measured_before_there_was_a_choice_is_of_generation(command: Command, tmp_path: Path) -> None:
    assert command() == 0
    import safetensors

    for name in ("activations", "importance", "findings"):
        with safetensors.safe_open(tmp_path / "out.work" / f"{name}.safetensors", framework="numpy") as file:
            assert "extract" not in json.loads(file.metadata()["about"])
            assert "extract" not in file.metadata()["about"]
    assert Findings.load(tmp_path / "out.work").extract == "generation"


def test_a_style_without_replies_is_told_before_the_model_is_loaded(
    command: Command, tmp_path: Path, style: Style, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "forced.json").write_text(style.model_dump_json())
    monkeypatch.setattr("emovllm_offline.discovery.discover.load", lambda *_: pytest.fail("the model was loaded"))
    assert command("--extract", "comprehension") == 2
    assert "the style told has no replies that the model could read" in capsys.readouterr().err
