import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

from emovllm.circuit_files import load_circuit, save_circuit
from emovllm.cli import main
from emovllm.errors import AssemblyError, CheckpointError, DiscoveryError, FindingsError, PromptError, StyleError
from emovllm.fingerprint import fingerprint_distance, fingerprint_entries, site_key
from emovllm.models import DEFAULT_MODEL_ID
from emovllm_offline.discovery import discover as discover_module
from emovllm_offline.discovery import measure as measure_module
from emovllm_offline.discovery.assembly import assemble
from emovllm_offline.discovery.discover import discover, gradient_agreement, measure, measure_until
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.discovery.parameters import Measurement, Parameters
from emovllm_offline.model.decoder import projection_weight
from emovllm_offline.model.find import find_decoder
from emovllm_offline.storage import checkpoint
from offline.conftest import DIFFERENT

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
    assert findings.importance_by_alpha.shape == (3, decoder.sublayers, 4)
    np.testing.assert_allclose(findings.importance_by_alpha.mean(-1), findings.importance, atol=1e-12)
    assert findings.alphas.tolist() == [0.1, 0.3, 0.5, 0.7]


def test_styles_are_averaged(decoder, tokenizer, records, style, reply_style, findings):
    each = [measure(decoder, tokenizer, records, [one], PARAMETERS).mlp_delta for one in (style, reply_style)]
    np.testing.assert_allclose(findings.mlp_delta, np.mean(each, axis=0), atol=1e-9)


def test_circuit_that_would_change_nothing_is_refused(decoder, findings):
    flat = replace(findings, mlp_delta=0 * findings.mlp_delta, attn_delta=0 * findings.attn_delta)
    with pytest.raises(AssemblyError, match="every delta of the circuit is zero"):
        assemble(decoder, flat, "tiny", {}, PARAMETERS, {})


def test_template_that_leaves_the_emotion_out_gives_the_circuit_of_one_that_has_it(tiny, tokenizer, records, style):
    in_the_user_turn, dropping = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    loop = "{% for m in messages %}"
    in_the_user_turn.chat_template = tokenizer.chat_template.replace(
        loop, f"{loop}{{% if m['role'] == 'system' %}}{{{{ raise_exception('no system') }}}}{{% endif %}}"
    )
    dropping.chat_template = tokenizer.chat_template.replace(loop, "{% for m in messages if m['role'] != 'system' %}")
    expected, circuit = (
        discover(tiny("llama"), one, records, [style], parameters=PARAMETERS) for one in (in_the_user_turn, dropping)
    )
    assert expected.neurons["calm"].delta.any()
    np.testing.assert_array_equal(circuit.neurons["calm"].delta, expected.neurons["calm"].delta)


def test_prompts_that_are_the_same_in_all_emotions_are_refused(decoder, tokenizer, records, style):
    same = style.model_copy(update={"emotions": dict.fromkeys(NAMES, style.emotions["calm"])})
    with pytest.raises(PromptError, match="the prompts of all emotions are the same in the style told"):
        measure(decoder, tokenizer, records, [same], PARAMETERS)


def test_model_without_a_chat_template_is_discovered_in_plain_text_and_its_circuit_says_so(
    tiny, tokenizer, tmp_path, caplog
):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    tiny("llama").save_pretrained(tmp_path / "model")
    plain.save_pretrained(tmp_path / "model")
    words = ["--limit", "1", "--style", "replies", "--importance-prompts", "1", "--out", str(tmp_path / "circuit")]
    assert main(["discover", str(tmp_path / "model"), *words]) == 0
    assert load_circuit(tmp_path / "circuit").spec.provenance["prompts"] == "plain text, without a chat template"
    assert "is asked in plain text" in caplog.text


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


@pytest.mark.parametrize("architecture", DIFFERENT)
def test_every_architecture_gives_a_circuit_that_round_trips(architecture, tiny, tokenizer, records, style, tmp_path):
    model = tiny(architecture)
    circuit = discover(model, tokenizer, records, [style], parameters=PARAMETERS, model_id=architecture)
    save_circuit(circuit, tmp_path)
    loaded = load_circuit(tmp_path)
    assert loaded.digest() == circuit.digest()
    assert loaded.names == NAMES
    assert loaded.spec.model.id == architecture


def test_a_circuit_says_of_which_quantisation_its_weights_were(decoder, findings):
    assert "quantization" not in assemble(decoder, findings, "tiny", {}, PARAMETERS, {}).spec.provenance
    decoder.model.config.quantization_config = {"quant_method": "fp8"}
    assert assemble(decoder, findings, "tiny", {}, PARAMETERS, {}).spec.provenance["quantization"] == "fp8"
    made = assemble(decoder, findings, DEFAULT_MODEL_ID, {}, PARAMETERS, {})
    assert made.spec.provenance["quantization"] == "Q4_1"


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
    first, again = (
        discover(tiny("llama"), tokenizer, records, [style], parameters=PARAMETERS).digest() for _ in range(2)
    )
    assert first == again


def test_strengths_are_recorded(decoder, findings):
    circuit = assemble(decoder, findings, "tiny", {"pride": (1.5, 3.0)}, PARAMETERS, {})
    assert [(e.recommended, e.maximal) for e in circuit.spec.emotions] == [(1, 2), (1.5, 3), (1, 2)]
    with pytest.raises(AssemblyError, match="strengths name joy; the emotions are calm, pride, boredom"):
        assemble(decoder, findings, "tiny", {"joy": (1, 2)}, PARAMETERS, {})


def test_styles_must_agree(tiny, tokenizer, records, style):
    other = style.model_copy(update={"emotions": dict(list(style.emotions.items())[:2])})
    with pytest.raises(StyleError, match="differ in their emotions: boredom"):
        discover(tiny("llama"), tokenizer, records, [style, other], parameters=PARAMETERS)


def test_no_data_is_refused(tiny, tokenizer, style):
    with pytest.raises(DiscoveryError, match="no scenario-event is left to measure"):
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
        usual = [
            "--data",
            str(tmp_path / "private" / "mine.jsonl"),
            "--out",
            str(tmp_path / "out"),
            "--style",
            str(tmp_path / "private" / "told.json"),
            "--importance-prompts",
            "2",
        ]
        return main(["discover", str(model), *usual, *more])

    return run


def test_command_writes_two_files_without_private_paths(command, tmp_path, capfd):
    assert command("--recommended", "1.5", "--recommended", "pride=0.5", "--maximal", "2.5") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["circuit.json", "circuit.safetensors"]
    circuit = load_circuit(tmp_path / "out")
    assert [(e.recommended, e.maximal) for e in circuit.spec.emotions] == [(1.5, 2.5), (0.5, 2.5), (1.5, 2.5)]
    text = (tmp_path / "out" / "circuit.json").read_text()
    assert "private" not in text
    provenance = json.loads(text)["provenance"]
    assert provenance["command"] == (
        "emovllm discover tiny --data mine.jsonl --style told.json --recommended 1.5 "
        "--recommended pride=0.5 --maximal 2.5 --importance-prompts 2"
    )
    assert set(provenance["versions"]) == {"emovllm", "torch", "transformers"}
    assert provenance["groups"] == 6
    assert "activations" in capfd.readouterr().err  # the progress bar


def test_command_repeats_exactly(command, tmp_path):
    written = []
    for _ in range(2):
        assert command() == 0
        written.append([(tmp_path / "out" / name).read_bytes() for name in ("circuit.json", "circuit.safetensors")])
    assert written[0] == written[1]


def test_what_was_measured_is_kept_beside_the_circuit(command, tmp_path):
    assert command("--limit", "1") == 0
    findings = Findings.load(tmp_path / "out.work")
    assert findings.emotions == NAMES
    assert findings.groups == 3
    circuit = (tmp_path / "out" / "circuit.safetensors").read_bytes()
    # The circuit alone, from what was measured; another budget needs no new measurement.
    (tmp_path / "out" / "circuit.safetensors").unlink()
    assert command("--limit", "1", "--stage", "circuit") == 0
    assert (tmp_path / "out" / "circuit.safetensors").read_bytes() == circuit
    assert command("--limit", "1", "--stage", "circuit", "--budget", "5") == 0
    assert (tmp_path / "out" / "circuit.safetensors").read_bytes() != circuit


@pytest.mark.parametrize("metric", ["residual", "normed"])
def test_stages_one_by_one_give_what_one_run_gives(command, tmp_path, metric):
    written = []
    for stages in ([None], ["activations", "heads", "importance", "circuit"]):
        assert command("--fresh", "--head-metric", metric, *(["--stage", stages[0]] if stages[0] else [])) == 0
        for stage in stages[1:]:
            assert command("--head-metric", metric, "--stage", stage) == 0
        written.append([(tmp_path / "out" / name).read_bytes() for name in ("circuit.json", "circuit.safetensors")])
    import difflib

    print(list(difflib.unified_diff(written[0][0].decode().split("\n"), written[1][0].decode().split("\n"), n=0)))
    assert written[0] == written[1]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 6, 7])
def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(command, tmp_path, monkeypatch, after):
    assert command() == 0
    names = ("circuit.json", "circuit.safetensors")
    whole = [(tmp_path / "out" / name).read_bytes() for name in names]
    findings = (tmp_path / "out.work" / "findings.safetensors").read_bytes()
    monkeypatch.setattr(checkpoint.Checkpoint.__init__, "__defaults__", (0.0,))  # saves after every step
    save, saves = checkpoint.Checkpoint.save, []

    def interrupting(self, arrays, done, always=False):
        save(self, arrays, done, always)
        saves.append(done)
        if len(saves) == after:
            raise Interrupted

    monkeypatch.setattr(checkpoint.Checkpoint, "save", interrupting)
    with pytest.raises(Interrupted):
        command("--fresh")
    collected = []
    collect = measure_module.collect
    monkeypatch.setattr(measure_module, "collect", lambda *args: collected.append(1) or collect(*args))
    assert command() == 0
    assert len(collected) == max(0, 6 - after)  # six groups in all: none is measured twice
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == whole
    assert (tmp_path / "out.work" / "findings.safetensors").read_bytes() == findings


def test_a_full_disk_loses_nothing_that_was_finished(command, tmp_path, monkeypatch, capsys):
    assert command("--stage", "activations") == 0
    kept = (tmp_path / "out.work" / "activations.safetensors").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("emovllm.files.Path.write_bytes", full)
    assert command() == 1
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert (tmp_path / "out.work" / "activations.safetensors").read_bytes() == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--batch-size", "5"], "activations.safetensors: made with other settings: batch size"),
        (["--limit", "1"], "activations.safetensors: made with other settings: data or style"),
        (["--seed", "3"], "importance.safetensors: made with other settings: seed"),
        (["--importance-prompts", "1"], "importance.safetensors: made with other settings: importance prompts"),
    ],
)
def test_progress_with_other_inputs_is_refused(command, capsys, change, message):
    assert command() == 0
    assert command(*change) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "--fresh" in error
    assert command("--fresh", *change) == 0


@pytest.fixture
def old_work(tmp_path, monkeypatch, tiny, tokenizer, records, style):
    """A work folder of a model that norms its sublayers' output, as it was before contributions went through them."""
    decoder = find_decoder(tiny("gemma2"))
    with monkeypatch.context() as before:
        before.setattr(discover_module, "norms_digest", lambda decoder: None)
        measurement = Measurement(work=tmp_path)
        findings = measure_until("importance", decoder, tokenizer, records, [style], PARAMETERS, measurement)
    with safetensors.safe_open(tmp_path / "findings.safetensors", framework="numpy") as file:
        about = json.loads(file.metadata()["about"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert findings.through_norms
    assert about.pop("through_norms")
    safetensors.numpy.save_file(arrays, tmp_path / "findings.safetensors", {"about": json.dumps(about)})
    return tmp_path


def test_activations_without_the_norms_of_the_output_are_not_taken_up(old_work, tiny, tokenizer, records, style):
    decoder, measurement = find_decoder(tiny("gemma2")), Measurement(work=old_work)
    with pytest.raises(CheckpointError, match=r"made with other settings: norms of the sublayers' output; .*--fresh"):
        measure_until("activations", decoder, tokenizer, records, [style], PARAMETERS, measurement)


def test_findings_without_the_norms_of_the_output_are_not_of_a_model_that_has_them(old_work, decoder, tiny):
    findings = Findings.load(old_work)
    with pytest.raises(FindingsError, match=r"older version, .*`emovllm discover --fresh`"):
        findings.require_norms(find_decoder(tiny("gemma2")))
    findings.require_norms(decoder)


def test_another_neutral_prompt_does_not_take_up_the_old_importance(command, tmp_path, capsys):
    assert command() == 0
    path = next(tmp_path.rglob("told.json"))
    style = json.loads(path.read_text())
    style["neutral"]["system"] = "reply now"
    path.write_text(json.dumps(style))
    assert command() == 2
    assert "importance.safetensors: made with other settings: neutral prompt" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(command, tmp_path, capsys):
    assert command("--stage", "activations") == 0
    path = tmp_path / "out.work" / "activations.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    assert command() == 2
    assert "activations.safetensors: damaged" in capsys.readouterr().err


def test_a_circuit_without_measurements_says_what_to_run(command, capsys):
    assert command("--stage", "circuit") == 2
    assert "findings.safetensors: missing; `emovllm discover` writes it" in capsys.readouterr().err


def test_gradient_importance_ranks_as_the_exact_one(decoder, tokenizer, records, style, findings):
    agreement = gradient_agreement(decoder, tokenizer, records, style, findings, PARAMETERS)
    assert agreement > 0.9
    by_gradient = measure(
        decoder, tokenizer, records, [style], Parameters(importance_prompts=2, importance="gradient", alphas=(1e-3,))
    )
    exact = measure(decoder, tokenizer, records, [style], Parameters(importance_prompts=2, alphas=(1e-3,)))
    np.testing.assert_allclose(by_gradient.importance, exact.importance, rtol=0.05, atol=0.02)
    assert by_gradient.importance_by_alpha is by_gradient.alphas is None


def test_what_was_measured_before_profiles_were_kept_is_taken_up_without_them(command, tmp_path):
    assert command() == 0
    work = tmp_path / "out.work"
    whole = Findings.load(work)
    assert whole.importance_by_alpha.shape == (3, 8, 4)
    with safetensors.safe_open(work / "importance.safetensors", framework="numpy") as file:
        metadata, kept = file.metadata(), {name: file.get_tensor(name) for name in ("total", "sigma")}
    safetensors.numpy.save_file(kept, work / "importance.safetensors", metadata=metadata)
    assert command() == 0
    older = Findings.load(work)
    assert older.importance_by_alpha is older.alphas is None
    np.testing.assert_array_equal(older.importance, whole.importance)


def test_gradient_runs_report_their_agreement(command, tmp_path):
    assert command("--importance", "gradient") == 0
    provenance = load_circuit(tmp_path / "out").spec.provenance
    assert provenance["gradient's rank correlation with exact importance"] > 0.5


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
    assert command(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_strength_that_is_no_number_is_explained(command, capsys):
    assert command("--recommended", "pride=much") == 2
    assert "expected a number or EMOTION=NUMBER, got 'pride=much'" in capsys.readouterr().err
