"""What of a reply is spared, by the request and by what the server can tell."""

from __future__ import annotations

from typing import Any

import pytest

from emovllm.catalogue import Applied, Catalogue, Policy, Served
from emovllm.errors import EmotionError
from emovllm.phases import BITS
from emovllm.sparing import FREE, NO_PARSERS, Form
from emovllm.spec import CircuitSpec, EmotionSpec
from support.specs import ANY_MODEL

CALLS = Form(tools=True)
FORCED = Form(tools=True, forced=True)
GUIDED = Form(guided=True)


def catalogue(unmarked: Any = None, **policy: Any) -> Catalogue:
    spec = CircuitSpec(model=ANY_MODEL, emotions=(EmotionSpec(name="anger"),))
    circuits = {"default": Served("default", spec, "digest", frozenset(), 0)}
    return Catalogue(Policy(**policy), circuits, unmarked=unmarked or {})


def resolved(form: Form = FREE, unmarked: Any = None, **fields: Any) -> Applied:
    applied = catalogue(unmarked).resolve({"emotion": "anger", **fields}, form)
    assert applied is not None
    return applied


def muted(applied: Applied) -> int:
    wire = applied.wire()
    return wire.muted if wire is not None else -1


@pytest.mark.parametrize(
    ("form", "fields", "bits"),
    [
        (FREE, {}, 0),
        (FREE, {"emotion_scope": "answer"}, BITS["thinking"]),
        (FREE, {"emotion_mute": ["tools"]}, BITS["tools"]),
        (CALLS, {}, BITS["tools"]),
        (CALLS, {"emotion_mute": []}, 0),
        (CALLS, {"emotion_mute": ["guided"]}, 0),
        (CALLS, {"emotion_scope": "answer"}, BITS["thinking"] | BITS["tools"]),
        (CALLS, {"emotion_scope": "prompt_last"}, 0),
        (FORCED, {"emotion_mute": []}, 0),
        (GUIDED, {}, 0),
        (GUIDED, {"emotion_mute": ["tools"]}, BITS["tools"]),
    ],
)
def test_what_is_muted(form: Form, fields: dict[str, Any], bits: int) -> None:
    applied = resolved(form, **fields)
    assert muted(applied) == bits
    assert not applied.plain


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        (FORCED, {}),
        (FORCED, {"emotion_mute": ["tools"]}),
        (GUIDED, {"emotion_mute": ["guided"]}),
        (GUIDED, {"emotion_mute": ["guided", "tools"], "emotion_scope": "answer"}),
    ],
)
def test_a_reply_that_is_spared_as_a_whole_is_plain_and_says_so(form: Form, fields: dict[str, Any]) -> None:
    applied = resolved(form, **fields)
    assert applied.wire() is None
    assert applied.body()["steered"] is False
    assert applied.header().endswith("; steered=no")


def test_a_reply_tells_what_is_muted_where_something_is() -> None:
    assert "mute" not in resolved().body()
    assert "mute" not in resolved().header()
    assert "steered" not in resolved().body()
    assert resolved(CALLS).body()["mute"] == ["tools"]
    both = resolved(emotion_mute=["guided", "tools", "guided"], emotion_scope="answer")
    assert both.body()["mute"] == ["tools", "guided"]
    assert both.body()["scope"] == "answer"
    assert "; scope=answer; " in both.header()
    assert both.header().endswith("; mute=tools,guided")


@pytest.mark.parametrize(
    ("fields", "parameter", "message"),
    [
        ({"emotion_scope": "answer"}, "emotion_scope", "--reasoning-parser"),
        ({"emotion_mute": ["tools"]}, "emotion_mute", "--tool-call-parser"),
    ],
)
def test_without_parsers_it_is_refused_with_what_to_do(fields: dict[str, Any], parameter: str, message: str) -> None:
    with pytest.raises(EmotionError, match=message) as caught:
        resolved(unmarked=NO_PARSERS, **fields)
    assert caught.value.parameter == parameter


def test_by_default_nothing_is_muted_without_a_parser() -> None:
    applied = resolved(CALLS, NO_PARSERS)
    assert (muted(applied), applied.mute) == (0, ())
    # Without its parser, a call that is forced is steered as anything is: the default spares what can be told.
    assert not resolved(FORCED, NO_PARSERS).plain
    assert resolved(GUIDED, NO_PARSERS, emotion_mute=["guided"]).plain


def test_an_operators_default_is_spared_likewise() -> None:
    offer = catalogue(default_emotion="anger")
    applied = offer.resolve({}, CALLS)
    assert applied is not None
    assert applied.mute == ("tools",)
    assert offer.resolve({"emotion": "none"}, CALLS) is None


def test_a_catalogue_that_nobody_told_of_parsers_can_tell_no_phase() -> None:
    spec = CircuitSpec(model=ANY_MODEL, emotions=(EmotionSpec(name="anger"),))
    offer = Catalogue(Policy(), {"default": Served("default", spec, "digest", frozenset(), 0)})
    with pytest.raises(EmotionError, match="reasoning-parser"):
        offer.resolve({"emotion": "anger", "emotion_scope": "answer"})
