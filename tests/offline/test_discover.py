import argparse
import json

import numpy as np
import pytest
import torch

from emovllm.circuit import fingerprint_distance, fingerprint_entries, load_circuit, site_key
from emovllm_offline import cli
from emovllm_offline.data import packaged_sev
from emovllm_offline.decoder import projection_weight
from emovllm_offline.discover import DiscoveryError, Parameters, assemble, discover, measure
from emovllm_offline.styles import StyleError

PARAMETERS = Parameters(importance_prompts=2)
NAMES = ("calm", "pride", "boredom")


@pytest.fixture
def findings(decoder, tokenizer, records, style, reply_style):
    return measure(decoder, tokenizer, records, [style, reply_style], PARAMETERS)


def test_findings_hold_what_the_method_says(decoder, findings):
    assert findings.emotions == NAMES
    assert findings.groups == 2 * 3 * 2  # scenarios, events, styles
    for directions in (findings.attn_directions, findings.mlp_directions):
        np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1)
    np.testing.assert_allclose(findings.mlp_delta.sum(0), 0, atol=1e-6)
    np.testing.assert_allclose(findings.attn_delta.sum(0), 0, atol=1e-6)
    assert np.abs(findings.mlp_delta).max() > 0.01
    assert findings.importance.shape == (3, decoder.sublayers)
    assert findings.similarity.shape == (decoder.sublayers, decoder.sublayers)


def test_styles_are_averaged(decoder, tokenizer, records, style, reply_style, findings):
    each = [measure(decoder, tokenizer, records, [one], PARAMETERS).mlp_delta for one in (style, reply_style)]
    np.testing.assert_allclose(findings.mlp_delta, np.mean(each, axis=0), atol=1e-9)


def test_circuit_has_the_best_units_and_their_differences(decoder, findings):
    circuit = assemble(decoder, findings, "tiny", {}, PARAMETERS, {})
    for e, name in enumerate(NAMES):
        for layer in range(4):
            units = circuit.neurons[name].at(layer)
            assert len(units) >= 4
            best = np.argsort(-findings.neurons[e, layer])[: len(units)]
            assert sorted(best) == units.index.tolist()
            np.testing.assert_allclose(units.delta, findings.mlp_delta[e, layer, units.index], rtol=1e-6)
            heads = circuit.heads[name].at(layer)
            expected = findings.attn_delta[e, layer].reshape(4, 8)[heads.index]
            np.testing.assert_allclose(heads.delta, expected, rtol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "phi3", "olmo2"])
def test_every_architecture_gives_a_circuit_that_round_trips(architecture, tiny, tokenizer, records, style, tmp_path):
    model = tiny(architecture)
    circuit = discover(model, tokenizer, records, [style], parameters=PARAMETERS, model_id=architecture)
    circuit.save(tmp_path)
    loaded = load_circuit(tmp_path)
    assert loaded.digest() == circuit.digest()
    assert loaded.names == NAMES
    assert loaded.spec.model.id == architecture


def test_fingerprint_is_that_of_the_injection(decoder, findings):
    circuit = assemble(decoder, findings, "tiny", {}, PARAMETERS, {})
    measured = {}
    for kind, i in circuit.sites():
        layer = decoder.layers[i]
        weight = projection_weight(layer.down_proj if kind == "mlp" else layer.o_proj).detach()
        folded = torch.nn.functional.linear(torch.from_numpy(circuit.site_delta(kind, i)), weight)
        measured[site_key(kind, i)] = fingerprint_entries(folded.numpy())
    assert fingerprint_distance(measured, circuit.fingerprint) < 1e-5


def test_same_input_gives_the_same_circuit(tiny, tokenizer, records, style):
    first, again = (discover(tiny("llama"), tokenizer, records, [style], parameters=PARAMETERS).digest()
                    for _ in range(2))  # fmt: skip
    assert first == again


def test_strengths_are_recorded(decoder, findings):
    circuit = assemble(decoder, findings, "tiny", {"pride": (1.5, 3.0)}, PARAMETERS, {})
    assert [(e.recommended, e.maximal) for e in circuit.spec.emotions] == [(1, 2), (1.5, 3), (1, 2)]
    with pytest.raises(DiscoveryError, match="strengths name joy; the emotions are calm, pride, boredom"):
        assemble(decoder, findings, "tiny", {"joy": (1, 2)}, PARAMETERS, {})


def test_styles_must_agree(tiny, tokenizer, records, style):
    other = style.model_copy(update={"emotions": dict(list(style.emotions.items())[:2])})
    with pytest.raises(StyleError, match="differ in their emotions: boredom"):
        discover(tiny("llama"), tokenizer, records, [style, other], parameters=PARAMETERS)


def test_no_data_is_refused(tiny, tokenizer, style):
    with pytest.raises(DiscoveryError, match="data set is empty"):
        discover(tiny("llama"), tokenizer, [], [style], parameters=PARAMETERS)


@pytest.fixture
def command(tmp_path, tiny, tokenizer, records, style):
    """Runs `emovllm discover` on a tiny model saved in a folder; extra arguments come last."""
    (tmp_path / "private").mkdir()
    model = tmp_path / "private" / "tiny"
    tiny("llama").save_pretrained(model)
    tokenizer.save_pretrained(model)
    (tmp_path / "private" / "mine.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in records))
    (tmp_path / "private" / "told.json").write_text(style.model_dump_json())

    def run(*more: str) -> int:
        parser = argparse.ArgumentParser()
        cli.configure(parser)
        usual = ["--data", str(tmp_path / "private" / "mine.jsonl"), "--out", str(tmp_path / "out"),
                 "--style", str(tmp_path / "private" / "told.json"), "--importance-prompts", "2"]  # fmt: skip
        return cli.main(parser.parse_args([str(model), *usual, *more]))

    return run


def test_command_writes_two_files_without_private_paths(command, tmp_path, capfd):
    assert command("--recommended", "1.5", "--recommended", "pride=0.5", "--maximal", "2.5") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["circuit.json", "circuit.safetensors"]
    circuit = load_circuit(tmp_path / "out")
    assert [(e.recommended, e.maximal) for e in circuit.spec.emotions] == [(1.5, 2.5), (0.5, 2.5), (1.5, 2.5)]
    text = (tmp_path / "out" / "circuit.json").read_text()
    assert "private" not in text
    provenance = json.loads(text)["provenance"]
    assert provenance["command"] == ("emovllm discover tiny --data mine.jsonl --style told.json --recommended 1.5 "
                                     "--recommended pride=0.5 --maximal 2.5 --importance-prompts 2")  # fmt: skip
    assert set(provenance["versions"]) == {"emovllm", "torch", "transformers"}
    assert provenance["groups"] == 6
    assert "activations" in capfd.readouterr().err  # the progress bar


def test_command_repeats_exactly(command, tmp_path):
    written = []
    for _ in range(2):
        assert command() == 0
        written.append([(tmp_path / "out" / name).read_bytes() for name in ("circuit.json", "circuit.safetensors")])
    assert written[0] == written[1]


def test_intermediate_results_are_kept_on_request(command, tmp_path):
    assert command("--keep-intermediate", str(tmp_path / "work"), "--limit", "1") == 0
    report = json.loads((tmp_path / "work" / "importance.json").read_text())
    assert list(report["importance"]) == list(NAMES)
    assert len(report["similarity"]) == len(report["sigma"]) == 8
    assert (tmp_path / "work" / "directions.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit must be above 0, got 0"),
        (["--neuron-share", "1.5"], "--neuron-share must be between 0 and 1"),
        (["--recommended", "joy=1"], "recommended names joy; the emotions are calm, pride, boredom"),
        (["--recommended", "3", "--maximal", "2"], "0 < recommended <= maximal, got 3.0 and 2.0"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: No such file or directory"),
        (["--style", "paper"], "differ in their emotions"),
    ],
)
def test_mistakes_are_explained_and_write_nothing(command, tmp_path, capsys, arguments, message):
    assert command(*arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_strength_that_is_no_number_is_explained(command, capsys):
    with pytest.raises(SystemExit):
        command("--recommended", "pride=much")
    assert "expected a number or EMOTION=NUMBER, got 'pride=much'" in capsys.readouterr().err


def test_data_defaults_to_the_packaged_file(tmp_path):
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    assert parser.parse_args(["--out", str(tmp_path)]).data is None
    assert packaged_sev().is_file()
