"""States under a circuit, against whole forwards and vectors that were planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm.emotion import Emotion
from emovllm.errors import ResultsError, StoredError
from emovllm_offline.data.prompts import Prompt, render
from emovllm_offline.data.sev import expand
from emovllm_offline.discovery.activations import collect
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.model.control import Control
from emovllm_offline.validation.plan import Plan, Settings
from emovllm_offline.validation.results import CONDITIONS, Validation
from emovllm_offline.validation.state_figures import find_trajectory
from emovllm_offline.validation.trajectories import Views, plane, under_circuit
from emovllm_offline.validation.validate import validate
from offline.conftest import tiny_model
from support.circuits import random_circuit

NAMES = ("calm", "pride", "boredom")
LAYERS, HIDDEN = 4, 32
PLAN = Plan(neurons=(4,), heads=(1,), seeds=2)
IDS = (5, 9, 17, 33, 65, 9, 70)


@pytest.fixture(scope="module")
def circuit(tmp_path_factory) -> Circuit:
    folder = tmp_path_factory.mktemp("circuit")
    tiny_model("llama").save_pretrained(folder / "tiny")
    return load_circuit(random_circuit(folder / "tiny", folder / "circuit", names=NAMES))


@pytest.fixture
def findings() -> Findings:
    rng = np.random.default_rng(1)
    shapes = {
        "attn_directions": (3, LAYERS, HIDDEN),
        "mlp_directions": (3, LAYERS, HIDDEN),
        "neurons": (3, LAYERS, 64),
        "heads": (3, LAYERS, 4),
        "mlp_delta": (3, LAYERS, 64),
        "attn_delta": (3, LAYERS, 32),
        "importance": (3, 2 * LAYERS),
        "similarity": (2 * LAYERS, 2 * LAYERS),
    }
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    arrays["mlp_directions"] /= np.linalg.norm(arrays["mlp_directions"], axis=-1, keepdims=True)
    return Findings(NAMES, 6, sigma=rng.uniform(1, 2, 2 * LAYERS), **arrays)


def states_of(decoder, ids, control=None, name="") -> np.ndarray:
    """The states after the MLP at the last token by one forward of the whole prompt, [layers, hidden]."""
    prompt = Prompt(tuple(ids), range(len(ids) - 1, len(ids)))
    if control is None:
        return collect(decoder, [prompt])["mlp"][0].numpy()
    seen: list[np.ndarray] = []
    handles = [
        layer.block.register_forward_hook(
            lambda module, args, output: seen.append(
                (output[0] if isinstance(output, tuple) else output)[0, -1].numpy()
            )
        )
        for layer in decoder.layers
    ]
    with torch.no_grad(), control.emotion(Emotion(((name, 1.0),), "prompt_last"), len(ids)):
        decoder.scores(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return np.stack(seen)


@pytest.mark.parametrize("length", [1, 7])
def test_states_under_the_circuit_are_those_of_a_whole_forward(decoder, circuit, length):
    control = Control(decoder.model, circuit)
    ids = IDS[-length:]
    found = under_circuit(decoder, control, Prompt(ids, range(length - 1, length)))
    assert found.shape == (3, LAYERS, HIDDEN)
    plain = states_of(decoder, ids)
    for states, name in zip(found, NAMES, strict=True):
        np.testing.assert_allclose(states, states_of(decoder, ids, control, name), rtol=1e-4, atol=1e-4)
        assert np.abs(states - plain).max() > 0.01


def test_states_under_the_circuit_are_found_in_every_architecture(different_decoder, tmp_path):
    family = different_decoder.config.model_type
    different_decoder.model.save_pretrained(tmp_path / "tiny")
    circuit = load_circuit(random_circuit(tmp_path / "tiny", tmp_path / "circuit", names=NAMES))
    control = Control(different_decoder.model, circuit)
    found = under_circuit(different_decoder, control, Prompt(IDS, range(6, 7)))
    for states, name in zip(found, NAMES, strict=True):
        expected = states_of(different_decoder, IDS, control, name)
        np.testing.assert_allclose(states, expected, rtol=1e-3, atol=1e-3, err_msg=family)


def test_a_planted_vector_shows_along_its_direction_alone(decoder, circuit, findings):
    """What the circuit writes in the last layer is taken for the direction there: it shows in full."""
    prompt = Prompt(IDS, range(6, 7))
    plain = states_of(decoder, IDS)
    moved = under_circuit(decoder, Control(decoder.model, circuit), prompt)
    written = moved[:, -1] - plain[-1]
    length = np.linalg.norm(written, axis=-1)
    findings.mlp_directions[:, -1] = written / length[:, None]
    views = Views(decoder, circuit, findings)
    asked = np.broadcast_to(plain, moved.shape) + 2 * (moved - plain)
    neutral, under, twice = views.of(prompt, plain, asked)[:, :, -1, 0]
    np.testing.assert_allclose(under - neutral, length, rtol=1e-3)
    np.testing.assert_allclose(twice - neutral, 2 * length, rtol=1e-3)
    np.testing.assert_allclose(neutral, plain[-1] @ findings.mlp_directions[:, -1].T, rtol=1e-3)


def test_the_plane_holds_directions_that_lie_in_one():
    rng = np.random.default_rng(0)
    inside = np.linalg.qr(rng.standard_normal((HIDDEN, 2)))[0].T  # [2, hidden]
    angles = rng.uniform(0, 2 * np.pi, (3, LAYERS))
    directions = np.stack([np.cos(angles), np.sin(angles)], -1) @ inside
    found = plane(directions)
    np.testing.assert_allclose(found @ found.T, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(directions @ found.T @ found, directions, atol=1e-9)


def test_a_path_begins_at_the_neutral_prompt_and_is_in_units_of_each_layers_residual(decoder, circuit, findings):
    views = Views(decoder, circuit, findings)
    seen = np.zeros((2, *views.shape))  # of two scenarios
    seen[..., 0] = np.array([1.0, 3.0])[:, None, None, None]
    seen[:, 0, ..., 1:] = 7
    seen[:, 1, 2, ..., 1:] = np.array([[8.0, 9.0], [10.0, 11.0]])[:, None]  # the circuit, third emotion
    by = {(of.emotion, of.condition): of for of in views.summarise(seen)}
    assert set(by) == {(name, condition) for name in NAMES for condition in CONDITIONS}
    one = by["boredom", "circuit"]
    np.testing.assert_allclose(one.path, np.array([2.0, 3.0]) / findings.sigma[1::2, None], rtol=1e-5)
    assert not np.any(by["boredom", "neutral"].path)
    assert one.mean == [2.0] * LAYERS
    half = 12.7062  # Student's t of two scenarios, a standard error of 1
    np.testing.assert_allclose([one.low, one.high], [[2 - half] * LAYERS, [2 + half] * LAYERS], rtol=1e-4)


def test_validation_has_the_trajectories_of_its_circuit(
    decoder, circuit, findings, tokenizer, records, reply_style, tmp_path
):
    def run(folder: str, given: Circuit | None) -> Validation:
        settings = Settings(plan=PLAN)
        return validate(decoder, tokenizer, findings, records, [reply_style], tmp_path / folder, settings, given)

    result = run("work", circuit)
    assert Validation.load(tmp_path / "work") == result
    control = Control(decoder.model, circuit)
    along = {condition: [] for condition in CONDITIONS}
    for index, item in enumerate(expand(records)):
        neutral = render(tokenizer, reply_style.neutral, item.user)
        along["neutral"].append(states_of(decoder, neutral.ids))
        along["circuit"].append(states_of(decoder, neutral.ids, control, "pride"))
        frames = [frame.model_copy(update={"reply": None}) for frame in reply_style.frames("pride", index)]
        prompts = [render(tokenizer, frame, item.user).ids for frame in frames]
        along["asked"].append(np.mean([states_of(decoder, ids) for ids in prompts], axis=0))
    for condition, states in along.items():
        expected = np.einsum("ld,ld->l", np.mean(states, axis=0), findings.mlp_directions[1])
        found = find_trajectory(result, "pride", condition).mean
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3, err_msg=condition)
    # The sweeps are of the findings, whatever the circuit.
    without = run("without", None)
    assert without.trajectories == []
    assert without.curves == result.curves
    with pytest.raises(StoredError, match="other settings: circuit;"):
        run("work", None)
    spec = circuit.spec.model_copy(update={"provenance": {"calibrated": "since"}})
    assert run("work", replace(circuit, spec=spec)) == result


def test_a_circuit_of_another_model_or_of_other_emotions_is_refused(decoder, circuit, findings):
    with pytest.raises(ResultsError, match="findings are of calm, pride, joy, but the circuit is of calm, pride, bore"):
        Views(decoder, circuit, replace(findings, emotions=("calm", "pride", "joy")))
    for layer in decoder.layers:
        layer.down_proj.weight.data.mul_(-1)
    with pytest.raises(ResultsError, match="the circuit is of another model"):
        Views(decoder, circuit, findings)
