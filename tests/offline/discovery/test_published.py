"""Importing circuits in the authors' formats: fixtures of ours, in miniature."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from transformers import LlamaConfig, LlamaForCausalLM

from emovllm.circuit_files import load_circuit
from emovllm.cli import main
from emovllm.errors import PublishedError, WeightsError
from emovllm.spec import ModelSpec
from emovllm_offline.discovery.published import find_run, import_published, load_directions
from emovllm_offline.model.control import Control
from emovllm_offline.model.weights import Projections

SPEC = ModelSpec(
    id="tiny",
    architecture="LlamaForCausalLM",
    num_hidden_layers=3,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
    head_dim=4,
    vocab_size=32,
)
DIFFERENCES = "05_emotion_diff_vector_computation"
HEADS = f"{DIFFERENCES}/attention_emotion_diff/emo_diff"
CIRCUITS = "06_emotion_circuit_integration/global_circuit"
CHOSEN = {"anger": {0: ([3, 1], [2]), 2: ([23], [])}, "fear": {0: ([], [0, 3]), 1: ([5], [1]), 2: ([], [])}}


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        vocab_size=32,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    run = tmp_path / "repo/outputs/llama32_3b"
    circuits = run / "06_emotion_circuit_integration/global_circuit"
    circuits.mkdir(parents=True)
    random = np.random.default_rng(0)
    together = {}
    for emotion, layers in CHOSEN.items():
        listed = [
            {"layer": layer, "mlp": {"neurons": neurons, "k": 1}, "attention": {"heads": heads}}
            for layer, (neurons, heads) in layers.items()
        ]
        (circuits / f"{emotion}.json").write_text(json.dumps({"emotion": emotion, "layers": listed}))
        folder = run / "05_emotion_diff_vector_computation/attention_emotion_diff/emo_diff" / emotion
        folder.mkdir(parents=True)
        for layer in range(3):
            name = f"layer{layer}.npy" if layer == 1 else f"L{layer}.npy"
            np.save(folder / name, random.standard_normal(16).astype(np.float32))
            together[f"{emotion}/diff/L{layer}"] = random.standard_normal(24).astype(np.float32)
    mlp = run / "05_emotion_diff_vector_computation/mlp_emotion_diff"
    mlp.mkdir()
    np.savez(mlp / "emo_diff_all.npz", **together)
    for layer in range(3):
        folder = mlp / "emo_diff/anger"
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"L{layer}.npy", together[f"anger/diff/L{layer}"])
    return tmp_path / "repo"


def test_units_and_differences_are_taken_over(checkout: Path, model: str, tmp_path: Path) -> None:
    import_published(checkout, tmp_path / "circuit", model, SPEC)
    circuit = load_circuit(tmp_path / "circuit")
    run = find_run(checkout)
    assert circuit.names == ("anger", "fear")
    assert circuit.spec.emotion("anger").recommended == 0.8
    mlp = np.load(run / "05_emotion_diff_vector_computation/mlp_emotion_diff/emo_diff_all.npz")
    for name, layers in CHOSEN.items():
        for layer, (neurons, heads) in layers.items():
            got = circuit.neurons[name].at(layer)
            assert got.index.tolist() == neurons
            assert np.array_equal(got.delta, mlp[f"{name}/diff/L{layer}"][neurons])
            folder = run / "05_emotion_diff_vector_computation/attention_emotion_diff/emo_diff" / name
            vector = np.load(folder / ("layer1.npy" if layer == 1 else f"L{layer}.npy"))
            got = circuit.heads[name].at(layer)
            assert got.index.tolist() == heads
            assert np.array_equal(got.delta, vector.reshape(4, 4)[heads])
    # The result steers the model that it was imported for.
    Control(LlamaForCausalLM.from_pretrained(model), circuit)


def test_the_fingerprint_is_of_the_given_weights(checkout: Path, model: str, tmp_path: Path) -> None:
    circuit = import_published(checkout, tmp_path / "circuit", model, SPEC)
    weight = LlamaForCausalLM.from_pretrained(model).model.layers[2].mlp.down_proj.weight
    folded = circuit.site_delta("mlp", 2) @ weight.detach().numpy().T
    np.testing.assert_allclose(circuit.fingerprint["mlp.2"][:, 0], folded[:, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / HEADS / "fear/layer1.npy").unlink(), f"{HEADS}/fear/L1.npy: missing"),
        (
            lambda run: (run / DIFFERENCES / "mlp_emotion_diff/emo_diff_all.npz").unlink(),
            "mlp_emotion_diff/emo_diff/fear/L1.npy: missing",
        ),
        (lambda run: np.save(run / HEADS / "anger/L0.npy", np.zeros(15, np.float32)), "expected 16 values"),
        (lambda run: np.save(run / HEADS / "anger/L0.npy", np.full(16, np.nan, np.float32)), "not finite"),
        (lambda run: (run / HEADS / "anger/L0.npy").write_bytes(b"\x93NUMPY"), "L0.npy"),
        (
            lambda run: (run / CIRCUITS / "fear.json").write_text('{"layers": [{}]}'),
            "fear.json: not a circuit of the published form",
        ),
        (
            lambda run: (run / CIRCUITS / "fear.json").write_text(
                json.dumps({"layers": [{"layer": 0, "mlp": {"neurons": [24]}, "attention": {"heads": []}}]})
            ),
            "neuron 24 is outside 0..23",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_named_and_nothing_is_written(
    checkout: Path, model: str, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(find_run(checkout))
    with pytest.raises(PublishedError) as caught:
        import_published(checkout, tmp_path / "circuit", model, SPEC)
    assert message in str(caught.value)
    assert not (tmp_path / "circuit").exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PublishedError, match="found none"):
        find_run(tmp_path)


@pytest.mark.parametrize("folder", [".", "outputs/llama32_3b"])
def test_a_commit_without_the_circuits_is_told_from_a_folder_of_something_else(checkout: Path, folder: str) -> None:
    (find_run(checkout) / CIRCUITS).rename(checkout / "elsewhere")
    with pytest.raises(PublishedError, match="this commit of their repository does not say which neurons"):
        find_run(checkout / folder)


def test_one_of_several_runs_is_asked_for(checkout: Path) -> None:
    (checkout / "outputs/qwen" / CIRCUITS).mkdir(parents=True)
    with pytest.raises(PublishedError, match=r"several runs .* llama32_3b, qwen; name one"):
        find_run(checkout)


@pytest.fixture
def directions(checkout: Path) -> Path:
    """Where their directions are."""
    folder = find_run(checkout) / "02_emotion_directions"
    folder.mkdir()
    return folder / "emo_directions_mlp.pt"


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("pickled_by", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_their_directions_are_the_steering_baselines(
    checkout: Path, directions: Path, model: str, tmp_path: Path, pickled_by: bytes
) -> None:
    random = np.random.default_rng(1)
    arrays = {name: unit(random.standard_normal((3, 16))) for name in ("anger", "fear", "surprise")}
    saved = io.BytesIO()
    torch.save({"dirs": arrays, "layers": 3, "emotions": [*arrays]}, saved, _use_new_zipfile_serialization=False)
    # As NumPy before its second version named it.
    directions.write_bytes(saved.getvalue().replace(b"numpy._core.multiarray", pickled_by))
    import_published(checkout, tmp_path / "circuit", model, SPEC)
    circuit = load_circuit(tmp_path / "circuit")
    for name in ("anger", "fear"):
        assert np.array_equal(circuit.directions[name][:2], arrays[name][:2])
        assert not circuit.directions[name][2].any(), "theirs is of the state after the final norm"
    provenance = circuit.spec.provenance
    assert provenance["differences"]["mlp"]["files"] == 3, "of anger two layers' files, of fear the archive"
    assert provenance["differences"]["attention"]["files"] == 3
    assert len(provenance["directions"]) == 64


def test_what_was_read_is_in_the_provenance(checkout: Path, model: str, tmp_path: Path) -> None:
    def told(name: str) -> dict[str, dict[str, object]]:
        return dict(import_published(checkout, tmp_path / name, model, SPEC).spec.provenance["differences"])

    before = told("one")
    unused = find_run(checkout) / HEADS / "anger/L1.npy"
    used = find_run(checkout) / HEADS / "anger/L0.npy"
    (unused.parent / "layer1.npy").unlink()
    assert told("two") == before
    np.save(used, np.ones(16, np.float32))
    after = told("three")
    assert after["mlp"] == before["mlp"]
    assert after["attention"] != before["attention"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"anger": np.eye(3, 16, dtype=np.float32)}, "has no direction of fear"),
        (dict.fromkeys(("anger", "fear"), np.eye(2, 16, dtype=np.float32)), r"anger is \(2, 16\), expected \(3, 16\)"),
    ],
)
def test_directions_of_something_else_are_refused(
    checkout: Path, directions: Path, model: str, tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    torch.save({"dirs": arrays}, directions)
    with pytest.raises(PublishedError, match=message):
        import_published(checkout, tmp_path / "circuit", model, SPEC)


def test_directions_are_read_without_unpickling(checkout: Path, directions: Path) -> None:
    vectors = {"anger": torch.randn(3, 16), "fear": torch.randn(3, 16)}
    torch.save({"dirs": vectors, "meta": {"n": 3}}, directions)
    read = load_directions(checkout, "mlp")
    assert np.array_equal(read["fear"], vectors["fear"].numpy())
    with pytest.raises(PublishedError, match=r"emo_directions_attention\.pt: missing"):
        load_directions(checkout, "attention")

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("executed",)

    for evil in (Evil(), np.array([Evil()], object)):
        torch.save({"dirs": {"anger": evil}}, directions)
        with pytest.raises(PublishedError, match="not a file of directions"):
            load_directions(checkout, "mlp")


def test_weights_are_read_one_at_a_time(model: str, tmp_path: Path) -> None:
    weights = Projections(model)
    expected = LlamaForCausalLM.from_pretrained(model).model.layers[1].self_attn.o_proj.weight
    assert np.array_equal(weights("attn", 1), expected.detach().numpy())
    with pytest.raises(WeightsError, match="no attn projection in layer 3"):
        weights("attn", 3)
    with pytest.raises(WeightsError, match="no projection's weight"):
        Projections(tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("no such snapshot"), r"someone/model: neither a folder nor .* \(no such snapshot\)"),
        (
            GatedRepoError("403", response=httpx.Response(403, request=httpx.Request("GET", "https://hub/"))),
            "someone/model: its weights are gated: .* HF_TOKEN",
        ),
    ],
)
def test_weights_that_cannot_be_had_are_named(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(WeightsError, match=message):
        Projections("someone/model")


def test_the_command_reports_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-published", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "06_emotion_circuit_integration/global_circuit under outputs/, found none" in capsys.readouterr().err
