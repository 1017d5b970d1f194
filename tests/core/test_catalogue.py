"""Several circuits, and what an operator allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from emovllm.applied import Applied, Served
from emovllm.catalogue import Catalogue
from emovllm.emotion import Target, Wire
from emovllm.errors import EmotionError
from emovllm.policy import Policy
from emovllm.readout import Reading
from emovllm.schedule import Schedule
from emovllm.spec import CircuitSpec, EmotionSpec
from support.specs import ANY_MODEL


def spec(*emotions: str, **changes: Any) -> CircuitSpec:
    return CircuitSpec(
        model=ANY_MODEL,
        emotions=tuple(EmotionSpec(name=name, recommended=0.5, maximal=1.0) for name in emotions),
        **changes,
    )


def catalogue(**policy: Any) -> Catalogue:
    circuits = {
        "a": Served("a", spec("anger", "fear"), "digest-a", frozenset(), 0),
        "b": Served("b", spec("anger", "joy", scope="all"), "digest-b", frozenset(), 2),
    }
    return Catalogue(Policy(**policy), circuits)


def resolved(offer: Catalogue, **fields: Any) -> Applied:
    applied = offer.resolve(fields)
    assert applied is not None
    return applied


def refusal(offer: Catalogue, **fields: Any) -> EmotionError:
    with pytest.raises(EmotionError) as caught:
        offer.resolve(fields)
    return caught.value


def test_an_emotion_finds_its_circuit() -> None:
    offer = catalogue()
    assert resolved(offer, emotion="fear").served.name == "a"
    assert resolved(offer, emotion="joy").wire() == Wire("digest-b", {"joy": 0.5}, "all")
    assert resolved(offer, emotion="b/anger").served.name == "b"
    assert resolved(offer, emotion={"a/anger": 1.0, "fear": 0.5}).mix == {"anger": 1.0, "fear": 0.5}


def test_what_was_asked_of_the_prompt_is_told() -> None:
    offer = catalogue()
    applied = resolved(offer, emotion="fear", emotion_from=-5, emotion_prompt="paper")
    assert applied.wire() == Wire("digest-a", {"fear": 0.5}, "generation", prompt_len=-5)
    assert (applied.body()["from"], applied.body()["prompt"]) == (-5, "paper")
    assert applied.header() == "fear=1; strength=1; scope=generation; circuit=a/digest-a; from=-5; prompt=paper"
    by_default = resolved(catalogue(default_emotion="fear"), emotion_prompt=True)
    assert by_default.instruction is not None
    assert by_default.instruction.style == "fewshot"
    assert resolved(offer, emotion="fear", emotion_prompt=False).instruction is None


def test_an_ambiguous_emotion_names_the_choices() -> None:
    assert "choose one of a/anger, b/anger" in str(refusal(catalogue(), emotion="anger"))


@pytest.mark.parametrize(
    ("emotion", "message", "reason"),
    [
        ("c/anger", "unknown emotion 'c/anger'; these circuits have a/anger, fear, b/anger, joy", "unknown_emotion"),
        ("a/joy", "unknown emotion 'a/joy'", "unknown_emotion"),
        ("/fear", "unknown emotion '/fear'", "unknown_emotion"),
        ("a/", "unknown emotion 'a/'", "unknown_emotion"),
        ({"fear": 1, "joy": 1}, "a blend is of one circuit, and this one is of a and b", "bad_value"),
        ({"fear": 1, "a/fear": 1}, "'fear' is named twice", "bad_value"),
        ({}, "emotion is empty", "bad_value"),
        (["fear"], "emotion must be a name", "bad_value"),
        (7, "emotion must be a name", "bad_value"),
        ({3: 1.0}, "unknown emotion '3'", "unknown_emotion"),
    ],
)
def test_what_no_circuit_has_is_refused(emotion: Any, message: str, reason: str) -> None:
    error = refusal(catalogue(), emotion=emotion)
    assert message in str(error)
    assert (error.parameter, error.reason) == ("emotion", reason)


def test_an_allow_list_hides_and_refuses_the_rest() -> None:
    offer = catalogue(emotions=("fear", "b/anger"))
    assert [name for _, _, name in offer.offers()] == ["fear", "b/anger"]
    assert resolved(offer, emotion="b/anger").served.name == "b"
    error = refusal(offer, emotion={"fear": 1, "a/anger": 1})
    assert "'a/anger' is not allowed on this server; these circuits have fear, b/anger" in str(error)
    assert error.reason == "not_allowed"


def test_the_operators_cap_is_the_lower_one() -> None:
    offer = catalogue(max_strength=1.2)
    assert offer.max_strength(spec("fear").emotions[0]) == 1.2
    assert resolved(offer, emotion="fear", emotion_strength=1.2).strength == 1.2
    error = refusal(offer, emotion="fear", emotion_strength=-1.3)
    assert "fear at strength -1.3 is over this server's maximum of 1.2" in str(error)
    assert (error.parameter, error.reason) == ("emotion_strength", "over_maximum")
    assert refusal(offer, emotion={"fear": 1.3}).parameter == "emotion"
    # A circuit's own maximum stays.
    assert "over the circuit's maximum of 2" in str(
        refusal(catalogue(max_strength=9), emotion="fear", emotion_strength=3)
    )


def test_a_default_emotion_is_for_requests_that_name_none() -> None:
    offer = catalogue(default_emotion={"fear": 0.5})
    assert resolved(offer).mix == {"fear": 0.5}
    assert resolved(offer, emotion=None, emotion_strength=2).strength == 2
    assert resolved(offer, emotion="joy").mix == {"joy": 1.0}
    assert offer.resolve({"emotion": "none"}) is None
    assert refusal(offer, emotion="none", emotion_strength=1).parameter == "emotion_strength"
    assert catalogue().resolve({}) is None
    assert catalogue().resolve({"emotion": "none"}) is None


def test_a_default_schedule_is_for_replies_that_have_none() -> None:
    fading = {"hold": 20, "half_life": 40}
    offer = catalogue(default_schedule=fading)
    applied = resolved(offer, emotion="fear", emotion_scope="generation")
    assert applied.body()["schedule"] == fading
    assert '; schedule={"hold": 20, "half_life": 40.0}' in applied.header()
    wire = applied.wire()
    assert wire is not None
    assert wire.schedule == Schedule(hold=20, half_life=40)
    assert resolved(offer, emotion="fear", emotion_scope="all").schedule is None
    own = [[0, 1.0]]
    assert resolved(offer, emotion="fear", emotion_scope="generation", emotion_schedule=own).body()["schedule"] == own
    assert offer.resolve({"emotion": "none"}) is None
    for wrong in ("soon", {"hold": 3}, [[0, 2]]):
        with pytest.raises(ValidationError, match=r"default_schedule\n.* must "):
            Policy(default_schedule=wrong)


def test_a_target_goes_by_what_is_read_here_within_the_operators_limit() -> None:
    reading = Reading("probe", 3, ("neutral", "fear", "anger"))
    offer = replace(catalogue(), reading=reading)
    applied = resolved(offer, emotion={"a/anger": 0.5, "fear": 1.0}, emotion_target=0.6, emotion_scope="generation")
    wire = applied.wire()
    assert wire is not None
    assert wire.target == Target(0.6, 0.5, (2, 1), 2.0)
    assert applied.body()["target"] == {"level": 0.6, "rate": 0.5}
    assert '; target={"level": 0.6, "rate": 0.5}' in applied.header()
    limited = replace(offer, policy=Policy(max_strength=1.5))
    wire = resolved(limited, emotion="fear", emotion_target=0.6).wire()
    assert wire is not None
    assert wire.target is not None
    assert wire.target.cap == 1.5


def test_a_target_that_cannot_be_followed_is_refused() -> None:
    reading = Reading("probe", 3, ("neutral", "anger"))
    asked = {"emotion": "fear", "emotion_target": 0.6}
    for offer, message in (
        (catalogue(), "needs a read-out, and this server reads nothing: start it with --readout"),
        (replace(catalogue(), reading=reading), "needs a probe that reads fear; this one reads neutral, anger"),
        (
            replace(catalogue(), reading=reading, untargeted="with pipelines"),
            "follows no emotion_target: with pipelines",
        ),
    ):
        refused = refusal(offer, **asked)
        assert refused.parameter == "emotion_target"
        assert message in str(refused)


def test_an_engine_that_can_keep_no_schedule_refuses_them_and_serves_the_rest() -> None:
    offer = replace(catalogue(), unscheduled="with asynchronous scheduling and drafts")
    refused = refusal(offer, emotion="fear", emotion_schedule={"to": 8}, emotion_scope="generation")
    assert refused.parameter == "emotion_schedule"
    assert "this server keeps no schedules: with asynchronous" in str(refused)
    assert resolved(offer, emotion="fear").schedule is None


@pytest.mark.parametrize(
    "policy",
    [
        {"emotions": ("sadness",)},
        {"emotions": ("anger",)},
        {"default_emotion": "sadness"},
        {"default_emotion": "anger"},
        {"default_emotion": "joy", "emotions": ("fear",)},
        {"default_emotion": {"fear": 1.5}, "max_strength": 1},
    ],
)
def test_a_policy_that_names_what_is_not_there_is_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(EmotionError, match=r"allowed emotions: |default emotion: "):
        catalogue(**policy).check_policy()


def test_a_model_suffix_is_a_blend_in_equal_parts() -> None:
    offer = catalogue()
    assert offer.parse_suffix("fear") == {"fear": 1.0}
    assert offer.parse_suffix("a/anger+fear") == {"a/anger": 0.5, "fear": 0.5}
    for suffix in ("anger", "fear+fear", "", "fear+", "a/anger+joy"):
        with pytest.raises(EmotionError):
            offer.parse_suffix(suffix)


def test_what_was_applied_is_told_as_it_was_asked() -> None:
    applied = resolved(catalogue(), emotion={"a/anger": 0.7, "fear": 0.3}, emotion_strength=1.5)
    assert applied.header() == "anger=0.7, fear=0.3; strength=1.5; scope=generation; circuit=a/digest-a"
    assert applied.body() == {
        "mix": {"anger": 0.7, "fear": 0.3},
        "strength": 1.5,
        "scope": "generation",
        "circuit": {"name": "a", "digest": "digest-a"},
    }
    nothing = resolved(catalogue(), emotion="fear", emotion_strength=0)
    assert nothing.wire() is None
    assert nothing.body()["strength"] == 0


def test_columns_are_reused_only_when_they_were_given_up() -> None:
    offer = catalogue()
    assert offer.room(2, 4) is None
    assert offer.room(2, 6) == 4
    offer.leaving["a"] = offer.circuits.pop("a")
    assert offer.room(2, 4) is None
    del offer.leaving["a"]
    assert offer.room(2, 4) == 0
    assert offer.room(3, 4) is None
