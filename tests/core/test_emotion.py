"""What a request may ask for."""

from __future__ import annotations

import copy
import json
import math
import re
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from emovllm.emotion import KEY, METHODS, SCOPES, Emotion, Target, Wire
from emovllm.errors import EmotionError
from emovllm.fields import FIELDS, json_schema, resolve
from emovllm.spec import CircuitSpec, EmotionSpec
from support.specs import ANY_MODEL

SPEC = CircuitSpec(
    model=ANY_MODEL,
    emotions=(EmotionSpec(name="anger", recommended=0.5, maximal=1.0), EmotionSpec(name="fear")),
)


def test_no_emotion_resolves_to_nothing() -> None:
    assert resolve({}, SPEC) is None
    assert resolve({"emotion": None, "emotion_strength": None}, SPEC) is None


def test_strength_counts_in_recommended_strengths() -> None:
    assert resolve({"emotion": "anger"}, SPEC) == Emotion((("anger", 0.5),), "generation")
    assert resolve({"emotion": "anger", "emotion_strength": 2}, SPEC) == Emotion((("anger", 1.0),), "generation")
    blend = resolve({"emotion": {"fear": -0.5, "anger": 0.4}, "emotion_strength": 2.0, "emotion_scope": "all"}, SPEC)
    assert blend == Emotion((("anger", 0.4), ("fear", -1.0)), "all")


@pytest.mark.parametrize(
    "fields",
    [{"emotion": "anger", "emotion_strength": 0}, {"emotion": {"anger": 0.0, "fear": 0}}, {"emotion": {"anger": -0.0}}],
)
def test_zero_strength_resolves_to_nothing(fields: dict[str, Any]) -> None:
    assert resolve(fields, SPEC) is None


def test_a_zero_weight_in_a_blend_changes_nothing() -> None:
    assert resolve({"emotion": {"anger": 1, "fear": 0}}, SPEC) == resolve({"emotion": "anger"}, SPEC)


def test_steering_counts_in_the_papers_strength_and_has_a_cap_of_its_own() -> None:
    fields = {"emotion": {"anger": 1, "fear": -0.5}, "emotion_strength": 4, "emotion_method": "steering"}
    expected = Emotion((("anger", 4.0), ("fear", -2.0)), "generation", "steering")
    assert resolve(fields, SPEC, METHODS) == expected
    with pytest.raises(EmotionError, match=r"anger at strength 4.5 is over steering's maximum of 4"):
        resolve({**fields, "emotion_strength": 4.5}, SPEC, METHODS)
    assert resolve({"emotion": "anger", "emotion_method": "circuit"}, SPEC) == resolve({"emotion": "anger"}, SPEC)


def test_steering_is_refused_where_it_is_not_served() -> None:
    with pytest.raises(EmotionError, match="the engine must be started with it") as caught:
        resolve({"emotion": "anger", "emotion_method": "steering"}, SPEC)
    assert caught.value.parameter == "emotion_method"


@pytest.mark.parametrize(
    ("fields", "parameter", "message"),
    [
        (
            {"emotion": "anger", "emotion_method": ["steering"]},
            "emotion_method",
            "circuit, steering, got 'list'",
        ),
        ({"emotion_method": "circuit"}, "emotion_method", "emotion_method needs `emotion`"),
        ({"emotion": "joyful"}, "emotion", "unknown emotion 'joyful'; this circuit has anger, fear"),
        ({"emotion": "Anger"}, "emotion", "unknown emotion"),
        ({"emotion": "anger "}, "emotion", "unknown emotion"),
        ({"emotion": "\u0430nger"}, "emotion", "unknown emotion"),
        ({"emotion": ""}, "emotion", "unknown emotion"),
        ({"emotion": "x" * 10_000}, "emotion", "unknown emotion 'xxx"),
        ({"emotion": {}}, "emotion", "emotion is empty"),
        ({"emotion": []}, "emotion", "a name or an object of weights, got 'list'"),
        ({"emotion": 3}, "emotion", "got '3'"),
        ({"emotion": True}, "emotion", "got 'True'"),
        ({"emotion": {"anger": "1"}}, "emotion", "a finite number for each emotion"),
        ({"emotion": {"anger": None}}, "emotion", "a finite number for each emotion"),
        ({"emotion": {"anger": True}}, "emotion", "a finite number for each emotion"),
        ({"emotion": {"anger": {"fear": 1}}}, "emotion", "a finite number for each emotion"),
        ({"emotion": {"anger": math.nan}}, "emotion", "a finite number for each emotion"),
        ({"emotion": {"anger": 10**400}}, "emotion", "a finite number for each emotion"),
        ({"emotion": {"anger": 1, "joyful": 1}}, "emotion", "unknown emotion 'joyful'"),
        ({"emotion": {"anger": 2.1}}, "emotion", "anger at strength 2.1 is over the circuit's maximum of 2"),
        ({"emotion": "anger", "emotion_strength": math.nan}, "emotion_strength", "a finite number"),
        ({"emotion": "anger", "emotion_strength": math.inf}, "emotion_strength", "a finite number"),
        ({"emotion": "anger", "emotion_strength": "1"}, "emotion_strength", "a finite number"),
        ({"emotion": "anger", "emotion_strength": False}, "emotion_strength", "a finite number"),
        ({"emotion": "fear", "emotion_strength": -2.5}, "emotion_strength", "fear at strength -2.5 is over"),
        ({"emotion": {"anger": 1e300}, "emotion_strength": 1e300}, "emotion_strength", "is over"),
        ({"emotion": "anger", "emotion_scope": "reply"}, "emotion_scope", "generation, prompt_last, all"),
        ({"emotion": "anger", "emotion_scope": ["all"]}, "emotion_scope", "generation, prompt_last, all"),
        ({"emotion_strength": 1.0}, "emotion_strength", "emotion_strength needs `emotion`"),
        ({"emotion_from": 4}, "emotion_from", "emotion_from needs `emotion`"),
        ({"emotion": "none", "emotion_from": 4}, "emotion_from", "emotion_from has no meaning with emotion 'none'"),
        ({"emotion": "fear", "emotion_from": 0}, "emotion_from", "a whole number of tokens other than 0, got '0'"),
        ({"emotion": "fear", "emotion_from": 1.5}, "emotion_from", "a whole number of tokens other than 0, got '1.5'"),
        ({"emotion": "fear", "emotion_from": 2**40}, "emotion_from", "a whole number of tokens other than 0"),
        ({"emotion": "fear", "emotion_from": True}, "emotion_from", "a number of tokens: the prompt's first ones"),
        ({"emotion": "fear", "emotion_from": "4"}, "emotion_from", "a number of tokens: the prompt's first ones"),
        (
            {"emotion": "fear", "emotion_from": 4, "emotion_scope": "all"},
            "emotion_from",
            "no meaning with the scope all",
        ),
        ({"emotion": "fear", "emotion_from": 4, "emotion_scope": "answer"}, "emotion_from", "or the scope answer"),
        ({"emotion": "fear", "emotion_from": 4, "emotion_mute": ["tools"]}, "emotion_from", "with emotion_mute"),
        ({"emotion": "fear", "emotion_from": 4, "emotion_target": 0.5}, "emotion_from", "with emotion_target"),
        ({"emotion_prompt": True}, "emotion_prompt", "emotion_prompt needs `emotion`"),
        (
            {"emotion": "fear", "emotion_prompt": "replies"},
            "emotion_prompt",
            "must be true, or a style: fewshot, paper, role, twenty; got 'replies'",
        ),
        ({"emotion": "fear", "emotion_prompt": 1}, "emotion_prompt", "must be true, or a style: fewshot, paper, role"),
        ({"emotion": "fear", "emotion_prompt": ["paper"]}, "emotion_prompt", "must be true, or a style"),
        ({"emotion_scope": "all"}, "emotion_scope", "emotion_scope needs `emotion`"),
        ({"emotion_schedule": {"to": 8}}, "emotion_schedule", "emotion_schedule needs `emotion`"),
        ({"emotion": "fear", "emotion_schedule": "soon"}, "emotion_schedule", "emotion_schedule must be one of {"),
        ({"emotion": "fear", "emotion_schedule": {}}, "emotion_schedule", "emotion_schedule must be one of {"),
        (
            {"emotion": "fear", "emotion_schedule": {"to": 8}, "emotion_scope": "all"},
            "emotion_schedule",
            "it needs a scope that goes on, such as generation, not all",
        ),
        ({"emotion": "fear", "emotion_scope": "prompt_tail:0"}, "emotion_scope", "answer, prompt_tail:N, got"),
        ({"emotion": "fear", "emotion_scope": "prompt_tail:513"}, "emotion_scope", "up to 512 tokens"),
        ({"emotion_mute": ["tools"]}, "emotion_mute", "emotion_mute needs `emotion`"),
        ({"emotion": "fear", "emotion_mute": "tools"}, "emotion_mute", 'must be a list, such as ["tools"]'),
        ({"emotion": "fear", "emotion_mute": ["tool"]}, "emotion_mute", "one of tools, guided"),
        ({"emotion": "fear", "emotion_target": "high"}, "emotion_target", "a probability from 0 to 1"),
        ({"emotion": "fear", "emotion_target": 1.5}, "emotion_target", "a probability from 0 to 1, got 1.5"),
        ({"emotion": "fear", "emotion_target": {"rate": 1}}, "emotion_target", 'or {"level": 0.6'),
        ({"emotion": "fear", "emotion_target": {"level": 0.5, "rate": 0}}, "emotion_target", "rate must be above 0"),
        ({"emotion": "fear", "emotion_target": {"level": 0.5, "rate": 1e9}}, "emotion_target", "at most 100"),
        (
            {"emotion": "fear", "emotion_target": 0.5, "emotion_scope": "prompt_last"},
            "emotion_target",
            "it needs a scope that goes on",
        ),
        (
            {"emotion": {"fear": 1, "anger": -1}, "emotion_target": 0.5},
            "emotion_target",
            "needs emotions of a strength above 0",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_field(fields: dict[str, Any], parameter: str, message: str) -> None:
    with pytest.raises(EmotionError) as caught:
        resolve(fields, SPEC)
    assert caught.value.parameter == parameter
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_wire_form_survives_other_processes_and_is_never_copied() -> None:
    wire = Emotion((("anger", 1 / 3), ("fear", -1.0)), "prompt_last", "steering").wire("digest")._replace(prompt_len=7)
    assert wire == Wire("digest", {"anger": 1 / 3, "fear": -1.0}, "prompt_last", "steering", 7)
    crossed = msgspec.msgpack.decode(msgspec.msgpack.encode({KEY: wire}))
    for extra_args in ({KEY: wire}, crossed, json.loads(json.dumps({KEY: wire}))):
        assert Wire.of(SimpleNamespace(extra_args=extra_args)) == wire
    assert copy.deepcopy(wire) is wire
    for nothing in (None, SimpleNamespace(extra_args=None), SimpleNamespace(extra_args={"other": 1})):
        assert Wire.of(nothing) is None


def test_the_prompt_of_a_beam_is_shorter_than_its_step_says() -> None:
    wire = Wire("digest", {"anger": 1.0}, "generation")
    assert wire.prompt_length(9) == 9
    assert wire._replace(prompt_len=4).prompt_length(9) == 4
    assert wire._replace(prompt_len=4).cache_key() == wire.cache_key()


def test_where_a_prompts_reply_begins_crosses_with_its_emotion() -> None:
    for given, start in ((12, 12), (-5, -5), (3.0, 3)):
        emotion = resolve({"emotion": "anger", "emotion_from": given}, SPEC)
        assert emotion == Emotion((("anger", 0.5),), "generation", start=start)
        assert emotion.wire("digest") == Wire("digest", {"anger": 0.5}, "generation", prompt_len=start)


def test_a_schedule_crosses_with_its_emotion_and_tells_cached_blocks_apart() -> None:
    asked = [{"hold": 20, "half_life": 40}, {"from": 8, "to": 64}, {"to": 8}, [[0, 1], [50, 0.3]], [[0, 1], [50, 0.2]]]
    emotions = [resolve({"emotion": "anger", "emotion_schedule": each}, SPEC) for each in [*asked, None]]
    wires = [emotion.wire("digest") for emotion in emotions if emotion is not None]
    for wire in wires:
        crossed = msgspec.msgpack.decode(msgspec.msgpack.encode({KEY: wire}))
        for extra_args in (crossed, json.loads(json.dumps({KEY: wire}))):
            assert Wire.of(SimpleNamespace(extra_args=extra_args)) == wire
    assert len({wire.cache_key() for wire in wires}) == len(asked) + 1


def test_what_changes_in_time_crosses_with_its_emotion_and_tells_cached_blocks_apart() -> None:
    asked: list[dict[str, Any]] = [
        {},
        {"emotion_scope": "answer"},
        {"emotion_mute": ["tools"]},
        {"emotion_scope": "answer", "emotion_mute": ["tools"]},
        {"emotion_scope": "prompt_tail:4"},
        {"emotion_target": 0.6},
        {"emotion_target": {"level": 0.6, "rate": 0.25}},
        {"emotion_target": {"level": 0.5}},
        {"emotion_target": 0.6, "emotion_strength": 0.5},
    ]
    wires = [resolve({"emotion": "anger", **fields}, SPEC).wire("digest") for fields in asked]  # type: ignore[union-attr]
    wires += [wires[1]._replace(within=1), wires[5]._replace(target=wires[5].target._replace(labels=(2,)))]  # type: ignore[union-attr]
    for wire in wires:
        crossed = msgspec.msgpack.decode(msgspec.msgpack.encode({KEY: wire}))
        for extra_args in (crossed, json.loads(json.dumps({KEY: wire}))):
            assert Wire.of(SimpleNamespace(extra_args=extra_args)) == wire
    assert len({wire.cache_key() for wire in wires}) == len(wires)
    assert [wire.muted for wire in wires[:4]] == [0, 1, 2, 3]


def test_a_targets_gain_stays_below_the_cap_of_the_emotion_that_reaches_it_first() -> None:
    # Their maxima are twice the recommended strength.
    for strength, cap in ((1.0, 2.0), (0.5, 4.0), (2.0, 1.0)):
        emotion = resolve({"emotion": "anger", "emotion_strength": strength, "emotion_target": 0.5}, SPEC)
        assert emotion is not None
        assert emotion.target == Target(0.5, 0.5, (), cap)
    blend = resolve({"emotion": {"anger": 0.5, "fear": 1.6}, "emotion_target": 0.5}, SPEC)
    assert blend is not None
    assert blend.target is not None
    assert blend.target.cap == pytest.approx(1.25)


def test_the_json_schema_is_that_of_the_fields() -> None:
    schema = json_schema()
    assert tuple(schema) == FIELDS
    object_of_weights = {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 1}
    assert schema["emotion"]["anyOf"] == [{"type": "string"}, object_of_weights, {"type": "null"}]
    pattern = schema["emotion_scope"]["anyOf"][0]["pattern"]
    for scope in (*SCOPES, "answer", "prompt_tail:1", "prompt_tail:512"):
        assert re.search(pattern, scope)
        assert resolve({"emotion": "anger", "emotion_scope": scope}, SPEC).scope == scope  # type: ignore[union-attr]
    for scope in ("reply", "prompt_tail:0", "prompt_tail", "answers", "prompt_tail:-1"):
        assert not re.search(pattern, scope)
    assert all(field["default"] is None and field["description"] for field in schema.values())


def test_the_cache_key_is_equal_exactly_when_the_injection_is() -> None:
    def key(fields: dict[str, Any], digest: str = "d") -> str:
        emotion = resolve(fields, SPEC)
        assert emotion is not None
        return emotion.wire(digest).cache_key()

    assert key({"emotion": "anger"}) == key({"emotion": {"fear": 0, "anger": 0.5}, "emotion_strength": 2})
    steered = resolve({"emotion": "anger", "emotion_strength": 0.5, "emotion_method": "steering"}, SPEC, METHODS)
    assert steered is not None
    assert steered.weights == (("anger", 0.5),)
    different = [
        steered.wire("d").cache_key(),
        key({"emotion": "anger"}),
        key({"emotion": "anger"}, digest="other"),
        key({"emotion": "fear"}),
        key({"emotion": "anger", "emotion_strength": 1.0000001}),
        key({"emotion": "anger", "emotion_strength": -1}),
        key({"emotion": "anger", "emotion_scope": "all"}),
        key({"emotion": {"anger": 1, "fear": 1}}),
    ]
    assert len(set(different)) == len(different)
