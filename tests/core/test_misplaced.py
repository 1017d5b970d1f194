"""Fields that would be ignored are refused, and told where they belong."""

from __future__ import annotations

from typing import Any

import pytest

from emovllm.errors import EmotionError
from emovllm.misplaced import refuse_misplaced


@pytest.mark.parametrize(
    ("fields", "parameter", "message"),
    [
        ({"emotions": "anger"}, "emotions", "'emotions' is no field of a request; did you mean emotion? There are emo"),
        ({"Emotion": "anger"}, "Emotion", "did you mean emotion?"),
        ({"emoton": "anger"}, "emoton", "did you mean emotion?"),
        ({"emotional_state": "anger"}, "emotional_state", "did you mean emotion?"),
        ({"emotion": "anger", "emotion_strenght": 2}, "emotion_strenght", "did you mean emotion_strength?"),
        ({"emotion": "anger", "emotionStrength": 2}, "emotionStrength", "did you mean emotion_strength?"),
        ({"emotion": "anger", "strength": 0.2}, "strength", "did you mean emotion_strength?"),
        ({"emotion": "anger", "Scope": "all"}, "Scope", "did you mean emotion_scope?"),
        (
            {"extra_body": {"emotion": "anger"}},
            "extra_body",
            "emotion has no effect inside of 'extra_body'; give it",
        ),
        ({"custom_params": {"emotion_strength": 2}}, "custom_params", "emotion_strength has no effect inside of"),
        ({"metadata": {"emotions": "anger"}}, "metadata", "emotions has no effect inside of 'metadata'"),
        ({"extra_body": {"vllm_xargs": {"emotion": "anger"}}}, "extra_body", "emotion has no effect inside of"),
        ({"emotion" + "x" * 10_000: 1}, "emotion" + "x" * 53, "is no field of a request"),
    ],
)
def test_a_field_in_the_wrong_place_or_misspelt_is_told_where_it_belongs(
    fields: dict[str, Any], parameter: str, message: str
) -> None:
    with pytest.raises(EmotionError) as caught:
        refuse_misplaced(fields)
    assert (caught.value.parameter, caught.value.reason) == (parameter, "unknown_field")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"emotion": "anger", "emotion_strength": 2, "emotion_scope": "all", "emotion_method": "circuit"},
        {"emotion": {"anger": 0.5, "fear": 0.5}},
        {"emotions": None, "metadata": {"emotion": None}},
        {"strength": 2, "scope": "all", "motion": 1, "options": {"deep": {"er": "emotion"}}},
        {"emotion": "anger", "seed": 1, "user": "emotion", "session": {"id": "emotion"}},
        {"emotion": "anger", "a": 1, "n": 1, "id": 1, "top": 1, "best_of": 2, "some": 1, "": 1, "tag": 1, "echo": 1},
        {"emotion": "anger", "score": 1, "stop_at": 1, "mode": 1, "model_id": 1, "metadata": {"stop": 1}},
    ],
)
def test_fields_that_are_ours_or_have_nothing_to_do_with_emotions_pass(fields: dict[str, Any]) -> None:
    refuse_misplaced(fields)
