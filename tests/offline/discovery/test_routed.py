"""What neurons of routed experts add to a circuit, on a model of which it is known where its emotions are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from emovllm.circuit_files import load_circuit, save_circuit
from emovllm.errors import FindingsError, RefinementError
from emovllm.fields import resolve
from emovllm_offline.data.prompts import render
from emovllm_offline.data.styles import Frame, Style
from emovllm_offline.discovery.assembly import assemble
from emovllm_offline.discovery.discover import discover, measure
from emovllm_offline.discovery.parameters import Parameters
from emovllm_offline.discovery.routed import divide
from emovllm_offline.model.control import Control
from emovllm_offline.model.find import find_decoder
from emovllm_offline.refinement.refine import refine, run

NAMES = ("calm", "pride", "boredom")
# Words of the tests' tokenizer that are replies of each emotion.
REPLIES = {"calm": "well quiet good", "pride": "proud yes very", "boredom": "dull no bad"}
PARAMETERS = Parameters(importance_prompts=2, experts=True)
# The experts, of four, that have the planted neurons: one for each emotion.
PLANTED = (1, 3)


@pytest.fixture
def replies() -> Style:
    return Style.model_validate(
        {
            "name": "planted",
            "description": "teacher-forced",
            "neutral": {"system": "reply ."},
            "reply_tokens": {"first": 1, "last": 3},
            "emotions": {e: [{"system": "reply .", "reply": text}] for e, text in REPLIES.items()},
        }
    )


@pytest.fixture
def planted(tiny, tokenizer):
    """A tiny Mixtral that writes an emotion's words after an emotion's words by neurons of two experts, and by nothing
    else: directions 0 to 2 of the residual stream are read by the head alone, 3 to 5 hold which emotion's word a token
    is, and attention neither reads nor writes any of them."""
    model = tiny("mixtral")
    words = {e: tokenizer(text, add_special_tokens=False)["input_ids"] for e, text in REPLIES.items()}
    with torch.no_grad():
        embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
        embedding[:, :6] = 0
        head[:, :6] = 0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:6] = 0
            for name in ("q_proj", "k_proj", "v_proj"):
                getattr(layer.self_attn, name).weight[:, :6] = 0
            experts, gate = layer.mlp.experts, layer.mlp.gate.weight
            experts.gate_up_proj[:, :, :6] = 0
            experts.down_proj[:, :6] = 0
            gate[:, :6] = 0
            for e, name in enumerate(NAMES):
                embedding[words[name], 3 + e] = 2.0
                head[words[name], e] = 6.0
                for expert in PLANTED:
                    experts.gate_up_proj[expert, e] = experts.gate_up_proj[expert, experts.intermediate_dim + e] = 0
                    experts.gate_up_proj[expert, e, 3 + e] = experts.gate_up_proj[
                        expert, experts.intermediate_dim + e, 3 + e
                    ] = 2.0
                    experts.down_proj[expert, :, e] = 0
                    experts.down_proj[expert, e, e] = 1.0
                    gate[expert, 3 + e] = 2.0
    return model


@torch.no_grad()
def moved(model, tokenizer, circuit) -> float:
    """By how much an emotion's words gain on those of the others, in the next token after a neutral prompt: the mean of
    all emotions, in nats."""
    prompt = render(tokenizer, Frame(system="reply ."), "the dog walks home .").ids
    control = Control(model, circuit)
    words = [tokenizer(REPLIES[name], add_special_tokens=False)["input_ids"] for name in NAMES]

    def scores(emotion) -> torch.Tensor:
        with control.emotion(emotion, len(prompt)):
            logits = model(input_ids=torch.tensor([list(prompt)])).logits[0, -1]
        return torch.stack([logits[ids].mean() for ids in words])

    plain, gains = scores(None), []
    for e, name in enumerate(NAMES):
        change = scores(resolve({"emotion": name}, circuit.spec)) - plain
        gains.append(change[e] - (change.sum() - change[e]) / 2)
    return float(torch.stack(gains).mean())


def random_vectors(circuit, seed: int):
    """The circuit with random vectors of equal norm in each layer."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, routed in circuit.experts.items():
        vectors = rng.standard_normal(routed.vectors.shape)
        vectors *= np.linalg.norm(routed.vectors, axis=1, keepdims=True) / np.linalg.norm(
            vectors, axis=1, keepdims=True
        )
        drawn[name] = replace(routed, vectors=vectors.astype(np.float32))
    return replace(circuit, experts=drawn)


def test_routed_experts_move_what_they_alone_carry(planted, tokenizer, records, replies):
    heads = discover(planted, tokenizer, records, [replies], parameters=replace(PARAMETERS, experts=False))
    circuit = discover(planted, tokenizer, records, [replies], parameters=PARAMETERS)
    by_heads, by_experts = (moved(planted, tokenizer, one) for one in (heads, circuit))
    by_chance = [moved(planted, tokenizer, random_vectors(circuit, seed)) for seed in range(20)]
    assert by_experts > 1
    assert abs(by_heads) < by_experts / 10
    assert np.std(by_chance) < by_experts / 3
    assert max(by_chance) < by_experts / 2
    planted_ones = {(expert, e) for expert in PLANTED for e in range(len(NAMES))}
    for e, name in enumerate(NAMES):
        routed = circuit.experts[name]
        found = planted_ones & set(zip(routed.expert.tolist(), routed.index.tolist(), strict=True))
        assert found
        assert {index for _, index in found} == {e}
    assert not any(len(units) for units in circuit.neurons.values())


def test_vectors_are_the_difference_that_the_chosen_neurons_write(planted, tokenizer, records, replies, tmp_path):
    decoder = find_decoder(planted, experts=True)
    findings = measure(decoder, tokenizer, records, [replies], PARAMETERS)
    circuit = assemble(decoder, findings, "planted", {}, replace(PARAMETERS, per_sublayer=1e3, least_neurons=256), {})
    # With every neuron chosen they are the whole difference of what the experts write: Mixtral's blocks have no more.
    for e, name in enumerate(NAMES):
        assert len(circuit.experts[name]) == 4 * 4 * 64
        for i, layer in enumerate(decoder.layers):
            columns = torch.cat([layer.experts.columns(x).detach() for x in range(4)], 1).double().numpy()
            expected = columns @ findings.experts_delta[e, i]
            np.testing.assert_allclose(circuit.experts[name].vectors[i], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(findings.routing.sum(2), 1, rtol=1e-5)
    assert "constant vectors" in circuit.spec.provenance["routed experts"]
    assert circuit.spec.model.layers[0].experts.block == "mlp"
    save_circuit(circuit, tmp_path)
    assert load_circuit(tmp_path).digest() == circuit.digest()


def test_a_layers_budget_goes_to_its_best_neurons_shared_or_routed():
    own = np.array([[5.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    routed = np.array([[4.0, 3.0, -1.0, 9.0], [2.0, 3.0, 4.0, 5.0]])
    shared, of_routed = divide(np.array([3, 2]), own, routed, [2, 3], [3, 4])
    assert (shared.tolist(), of_routed.tolist()) == ([1, 0], [2, 2])
    # A layer without experts.
    shared, of_routed = divide(np.array([2, 2]), own, routed, [3, 3], [0, 4])
    assert (shared.tolist(), of_routed.tolist()) == ([2, 0], [0, 2])


def test_what_was_measured_without_experts_gives_no_circuit_with_them(tiny, tokenizer, records, style):
    decoder = find_decoder(tiny("mixtral"), experts=True)
    findings = measure(find_decoder(tiny("mixtral")), tokenizer, records, [style], replace(PARAMETERS, experts=False))
    with pytest.raises(FindingsError, match="measure anew by `emovllm discover --fresh --experts`"):
        findings.require_experts(decoder)


def test_vectors_of_experts_are_not_refined(planted, tokenizer, records, replies, tmp_path):
    circuit = discover(planted, tokenizer, records, [replies], parameters=PARAMETERS)
    refusal = "constant vectors of routed experts, which are not fitted"
    with pytest.raises(RefinementError, match=refusal):
        refine(find_decoder(planted), tokenizer, circuit, [])
    save_circuit(circuit, tmp_path / "circuit")
    with pytest.raises(RefinementError, match=refusal):
        run("no/such/model", tmp_path / "circuit", tmp_path / "out")
