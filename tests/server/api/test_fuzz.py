"""Whatever stands in the emotion fields: a 4xx, or exactly the emotion that a plain reading of the JSON gives.

Bodies are raw text, for JSON can say more than a client's library would: numbers that are none, fields given twice,
escaped names. The reading here shares no code with the server's.
"""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.bodies import ROUTES
from support.circuits import SIX
from support.servers import Server

pytestmark = pytest.mark.engine

MAXIMUM = 3.0  # of the tiny server's circuit, for each emotion, in units of the recommended
PROMPTS = {
    "/v1/chat/completions": '"messages": [{"role": "user", "content": "rain"}], "max_tokens": 6, "ignore_eos": true',
    "/v1/completions": '"prompt": "the rain", "max_tokens": 6, "ignore_eos": true',
    "/v1/responses": '"input": "the rain", "max_output_tokens": 6',
}
BATCH = "/v1/chat/completions/batch"
PROMPTS[BATCH] = '"messages": [[{"role": "user", "content": "rain"}]], "max_tokens": 6'

ALIKE = [
    "\u0430nger",
    "ANGER",
    "anger ",
    " anger",
    "an\u200bger",
    "\uff41nger",
    "anger\u0000",
    "a\u0301nger",
    "joy",
    "",
    "none",
]
NUMBERS = [
    "0",
    "-0.0",
    "1",
    "0.5",
    "-1",
    "2.9",
    "3",
    "3.0000001",
    "-3.1",
    "1e-320",
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "-Infinity",
    "1" + "0" * 400,
    "1E0",
    "true",
    "false",
    '"1"',
    "null",
]
names = st.sampled_from(list(SIX)) | st.sampled_from(ALIKE) | st.text(max_size=8)
numbers = st.sampled_from(NUMBERS) | st.floats(-4, 4).map(json.dumps)
written_names = names.map(json.dumps)


def written_object(keys: Any, values: Any, size: int) -> Any:
    pairs = st.lists(st.tuples(keys, values), max_size=size)
    return pairs.map(lambda found: "{" + ", ".join(f"{key}: {value}" for key, value in found) + "}")


weights = written_object(written_names, numbers, 4)
good_weights = written_object(st.sampled_from(list(SIX)).map(json.dumps), st.floats(-1, 1).map(json.dumps), 3)
odd = st.recursive(
    numbers | written_names,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]") | written_object(written_names, inner, 3)
    ),
    max_leaves=6,
)
huge = st.sampled_from(
    [
        "{" + ", ".join(f'"{name}{number}": 0.1' for name in SIX for number in range(3000)) + "}",
        "{" + ", ".join(f'"anger": 0.{number}' for number in range(1, 2000)) + "}",
        "[" * 400 + "]" * 400,
        '{"anger": ' * 300 + "1" + "}" * 300,
        json.dumps("anger" * 20_000),
    ]
)
FIELDS = {
    "emotion": st.sampled_from(list(SIX)).map(json.dumps) | written_names | good_weights | weights | odd | huge,
    "emotion_strength": numbers | odd,
    "emotion_scope": st.sampled_from(['"generation"', '"prompt_last"', '"all"', "null", '"ALL"', '"al\u200bl"']) | odd,
    # No prompt here is as short as 5 tokens, or as long as 1000.
    "emotion_from": st.sampled_from(["1", "2", "-1", "3.0", "1E0", "-4", "0", "1000", "-1000", "1.5", '"1"']) | odd,
    "emotion_prompt": st.sampled_from(["true", "false", '"paper"', '"role"', '"replies"', '"Paper"', "1"]) | odd,
}
SPELLED = {name: st.sampled_from([f'"{name}"', f'"\\u0065{name[1:]}"']) for name in FIELDS}


@st.composite
def written_fields(draw: Any) -> str:
    """Up to four of the fields as text, some of them twice."""
    chosen = draw(st.lists(st.sampled_from(["emotion", "emotion", *FIELDS]), min_size=1, max_size=4))
    return ", ".join(f"{draw(SPELLED[name])}: {draw(FIELDS[name])}" for name in chosen)


class Refused(Exception):
    """What must be a 4xx."""


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused
    try:
        if not math.isfinite(value):
            raise Refused
        return float(value)
    except OverflowError:
        raise Refused from None


def told(fields: dict[str, Any], route: str) -> dict[str, Any]:
    """What is asked of the prompt. Raises: Refused."""
    start, style = fields.get("emotion_from"), fields.get("emotion_prompt")
    asked: dict[str, Any] = {}
    if start is not None:
        if not 1 <= abs(number(start)) <= 4 or start != int(start) or fields.get("emotion_scope") == "all":
            raise Refused
        asked["emotion_from"] = int(start)
    if style is not None and style is not False:
        if style is not True and style not in ("fewshot", "paper", "role", "twenty"):
            raise Refused
        if route == "/v1/completions":
            raise Refused
        asked["emotion_prompt"] = "fewshot" if style is True else style
    return asked


def reading(text: str, route: str) -> dict[str, Any] | None:
    """What the fields ask for, in one way of saying it: weights, and a scope; None for nothing. Raises: Refused."""
    fields = json.loads("{" + text + "}")
    emotion, strength, scope, *rest = (fields.get(name) for name in FIELDS)
    if emotion is None or emotion == "none":
        if any(value is not None for value in (strength, scope, *rest)):
            raise Refused
        return None
    factor = 1.0 if strength is None else number(strength)
    if isinstance(emotion, str):
        emotion = {emotion: 1}
    if not isinstance(emotion, dict) or not emotion or any(name not in SIX for name in emotion):
        raise Refused
    if scope not in (None, "generation", "prompt_last", "all"):
        raise Refused
    lambdas = {name: number(weight) * factor for name, weight in emotion.items()}
    if any(abs(value) > MAXIMUM * (1 + 1e-9) for value in lambdas.values()):
        raise Refused
    asked = told(fields, route)
    if "emotion_prompt" in asked:
        if factor < 0 or min(emotion.values()) < 0 or max(emotion.values()) == 0:
            raise Refused
        if not any(lambdas.values()):
            return {"emotion": emotion, "emotion_strength": 0, "emotion_prompt": asked["emotion_prompt"]}
    lambdas = {name: value for name, value in lambdas.items() if value != 0}
    return {"emotion": lambdas, "emotion_scope": scope or "generation", **asked} if lambdas else None


class Asking:
    """One server, and what it said."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=60)

    def ask(self, route: str, fields: str) -> httpx.Response:
        content = f'{{"model": "tiny", "temperature": 0, {PROMPTS[route]}{", " if fields else ""}{fields}}}'
        headers = {"content-type": "application/json"}
        # Lone surrogates are no UTF-8; as JSON's text they come escaped.
        return self.client.post(route, content=content.encode("utf-8", "surrogatepass"), headers=headers)

    def text(self, route: str, fields: str) -> str:
        reply = self.ask(route, fields)
        assert reply.status_code == 200, reply.text
        body = reply.json()
        if route == "/v1/responses":
            return str(body["output"][-1]["content"][0]["text"])
        choice = body["choices"][0]
        return str(choice["message"]["content"] if "message" in choice else choice["text"])

    def check(self, route: str, fields: str) -> None:
        try:
            meant = reading(fields, route)
        except Refused:
            reply = self.ask(route, fields)
            assert 400 <= reply.status_code < 500, (reply.status_code, reply.text[:500])
            assert "error" in reply.json()
            assert len(reply.content) < 5000
            return
        same = "" if meant is None else json.dumps(meant)[1:-1]
        assert self.text(route, fields) == self.text(route, same)


@pytest.fixture(scope="module")
def asking(tiny_server: Server) -> Asking:
    return Asking(tiny_server.url)


FIXED = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("route", ROUTES)
def test_each_emotion_changes_what_the_fuzz_reads(asking: Asking, route: str) -> None:
    """Else an unsteered reply would pass for a steered one."""
    plain = asking.text(route, "")
    steered = [asking.text(route, f'"emotion": "{name}"') for name in SIX]
    assert len({plain, *steered}) == 7


@pytest.mark.parametrize("route", ROUTES)
def test_whatever_the_fields_hold(asking: Asking, route: str) -> None:
    @FIXED
    @given(written_fields())
    @example('"emotion": "anger", "emotion": "fear"')
    @example('"emotion": "joyful", "emotion": "fear"')
    @example('"emotion": "fear", "emotion": null')
    @example('"emotion": "fear", "emotion": "none"')
    @example('"emotion": "none", "emotion_strength": 1')
    @example('"emotion": {"none": 1}')
    @example('"emotion": "anger", "emotion_strength": 1e400')
    @example('"emotion": "anger", "emotion_strength": 1e-320')
    @example('"emotion": {"anger": 1e308, "fear": 1}, "emotion_strength": 0')
    @example('"emotion": {"anger": 2}, "emotion_strength": 1.5')
    @example('"emotion": "anger", "emotion_prompt": true')
    @example('"emotion": {"fear": 0.2, "anger": 0.5, "surprise": 0.1}, "emotion_prompt": "paper"')
    @example('"emotion": {"fear": 0.2, "anger": 0.5}, "emotion_prompt": "role", "emotion_from": -2')
    @example('"emotion": "anger", "emotion_strength": 0, "emotion_prompt": true')
    @example('"emotion": "anger", "emotion_from": 3.0, "emotion_scope": "prompt_last"')
    @example('"emotion": "anger", "emotion_from": -1000')
    @example('"emotion": "anger", "emotion_strength": 0, "emotion_from": 1000')
    @example('"emotion": "\\ud83d"')
    @example('"emotion": {"\\ud83d": 1}')
    def fuzz(fields: str) -> None:
        asking.check(route, fields)

    fuzz()


@pytest.mark.parametrize("route", ROUTES)
def test_fields_among_vllms_own_extras_are_read_alike(asking: Asking, route: str) -> None:
    assert asking.text(route, '"vllm_xargs": {"emotion": "fear"}') == asking.text(route, '"emotion": "fear"')
    for extras in (
        '"vllm_xargs": {"emotion": "joyful"}',
        '"vllm_xargs": {"emotion": {"anger": 1}}',
        '"vllm_xargs": {"emotion": "anger", "emotion_strength": NaN}',
        '"vllm_xargs": {"emotion": "anger", "emotion_strength": 1e400}',
        '"vllm_xargs": {"emovllm": "anger"}',
        '"vllm_xargs": {"emovllm": [1.0, 2.0]}',
    ):
        reply = asking.ask(route, extras)
        assert 400 <= reply.status_code < 500, (extras, reply.text)


@pytest.mark.parametrize("route", [*ROUTES, BATCH])
@pytest.mark.parametrize(
    ("extras", "parameter"),
    [
        ('"extra_body": {"emotion": "anger"}', "extra_body"),
        ('"custom_params": {"emotion": "anger"}', "custom_params"),
        ('"metadata": {"emotion": "anger"}', "metadata"),
        ('"emotions": "anger"', "emotions"),
        ('"emotion": "anger", "strength": 0.2', "strength"),
        ('"vllm_xargs": {"emotions": "anger"}', "emotions"),
    ],
)
def test_a_field_in_the_wrong_place_or_misspelt_is_a_400(
    asking: Asking, route: str, extras: str, parameter: str
) -> None:
    reply = asking.ask(route, extras)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == parameter


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("where", ["emotion", "vllm_xargs"])
def test_two_places_that_differ_never_give_an_unsteered_reply(asking: Asking, route: str, where: str) -> None:
    given_twice = {
        "emotion": '"emotion": null, "vllm_xargs": {"emotion": "fear"}',
        "vllm_xargs": '"emotion": "fear", "vllm_xargs": {"emotion": "anger"}',
    }[where]
    reply = asking.ask(route, given_twice)
    if reply.status_code == 200:
        assert asking.text(route, given_twice) == asking.text(route, '"emotion": "fear"')
    else:
        assert 400 <= reply.status_code < 500


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"emotion"',
        b'{"emotion": "anger"',
        b'{"emotion": "anger",}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": "tiny", "prompt": "x", "emotion": "\xff"}',
        b'{"emotion": "anger"}',
    ],
)
@pytest.mark.parametrize("route", [*ROUTES, BATCH, "/v1/messages", "/tokenize"])
def test_a_body_that_is_no_request_is_a_4xx(asking: Asking, route: str, content: bytes) -> None:
    reply = asking.client.post(route, content=content, headers={"content-type": "application/json"})
    assert 400 <= reply.status_code < 500, (reply.status_code, reply.text[:300])
