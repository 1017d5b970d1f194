"""What a model is told in its system turn, beside the circuit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emovllm.errors import EmotionError
from emovllm.fields import Options
from emovllm.instructions import by_weight, instruct
from emovllm.spec import CircuitSpec, EmotionSpec
from emovllm.styles import PROMPTS, load_style, packaged_styles
from support.specs import ANY_MODEL


def circuit(*styles: Any, emotions: tuple[str, ...] = ("anger", "fear", "sadness", "pride", "own")) -> CircuitSpec:
    provenance = {"styles": list(styles)} if styles else {}
    return CircuitSpec(
        model=ANY_MODEL, emotions=tuple(EmotionSpec(name=name) for name in emotions), provenance=provenance
    )


def told(style: str) -> dict[str, str]:
    return {"name": style, "sha256": load_style(style).digest()}


def text(spec: CircuitSpec, **fields: Any) -> tuple[str, str]:
    instruction = instruct(Options.read(fields), spec)
    assert instruction is not None
    return instruction.style, instruction.text


def test_the_styles_to_choose_from_are_those_whose_system_turn_says_the_emotion() -> None:
    saying = []
    for name in packaged_styles():
        style = load_style(name)
        frames = [frame for frames in style.emotions.values() for frame in frames]
        if all(frame.system not in (None, style.neutral.system) for frame in frames):
            saying.append(name)
            first = [frames[0].system for frames in style.emotions.values()]
            assert len(set(first)) == len(style.emotions)
    assert sorted(PROMPTS) == saying


def test_true_is_the_style_of_the_circuits_discovery() -> None:
    fields = {"emotion": "anger", "emotion_prompt": True}
    assert text(circuit(told("paper")), **fields) == (
        "paper",
        "Always reply in anger.\nKeep the reply to at most two sentences.",
    )
    # One whose system turn says nothing, then one that does.
    assert text(circuit(told("replies"), told("role")), **fields)[0] == "role"
    assert text(circuit(told("paper")), **{**fields, "emotion_prompt": "twenty"})[0] == "twenty"


@pytest.mark.parametrize(
    "styles",
    [
        (),
        ({"name": "paper", "sha256": "0" * 64},),
        ({"name": "mine", "sha256": "0" * 64},),
        ({"name": ["paper"]},),
        ("paper",),
        ({"name": "replies", "sha256": load_style("replies").digest()},),
    ],
)
def test_without_a_style_of_ours_true_is_the_default_one(styles: tuple[Any, ...]) -> None:
    assert text(circuit(*styles), emotion="anger", emotion_prompt=True)[0] == "fewshot"


def test_the_packaged_circuit_is_prompted_by_its_own_style() -> None:
    folder = Path(__file__).parents[2] / "circuits/SmolLM2-135M-Instruct/circuit.json"
    spec = CircuitSpec.model_validate(json.loads(folder.read_text()))
    assert spec.provenance["styles"] == [told("fewshot")]
    assert text(spec, emotion="fear", emotion_prompt=True)[0] == "fewshot"


def test_a_blend_names_its_emotions_the_strongest_first() -> None:
    paper = load_style("paper").emotions["fear"][0].system
    blend = {"anger": 0.2, "fear": 0.7, "sadness": 0.0, "happiness": 0.2, "disgust": 0.1}
    spec = circuit(emotions=tuple(blend))
    assert by_weight(blend) == ["fear", "anger", "happiness", "disgust"]
    assert text(spec, emotion=blend, emotion_prompt="paper") == (
        "paper",
        f"{paper}\nBeside fear, let anger, happiness and disgust, in this order, be felt in the reply too.",
    )
    two = text(spec, emotion={"anger": 0.5, "fear": 0.7}, emotion_prompt="paper")[1]
    assert two == f"{paper}\nBeside fear, let anger be felt in the reply too."


def test_prompted_without_an_injection_is_the_prompt_alone() -> None:
    assert text(circuit(), emotion="anger", emotion_strength=0, emotion_prompt="paper")[0] == "paper"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"emotion": "anger", "emotion_strength": -1}, "has no words for a negative strength"),
        ({"emotion": {"anger": 1, "fear": -0.1}}, "has no words for a negative strength"),
        ({"emotion": {"anger": 0, "fear": 0}}, "needs an emotion of a weight above 0"),
        (
            {"emotion": {"pride": 1, "anger": 1}},
            "the style fewshot has no instruction for pride; these have all of this",
        ),
        ({"emotion": "own"}, "the style fewshot has no instruction for own, nor has any other all of them"),
    ],
)
def test_what_has_no_words_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(EmotionError, match=message) as caught:
        text(circuit(), **fields, emotion_prompt=True)
    assert caught.value.parameter == "emotion_prompt"
