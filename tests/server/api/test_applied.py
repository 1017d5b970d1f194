"""What a reply tells of its emotion, and model names that carry one."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import openai
import pytest

from support.bodies import MESSAGE, ROUTES, body
from support.servers import Server

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def digest(server: Server) -> str:
    return str(httpx.get(f"{server.url}/v1/emotions").json()["circuits"][0]["digest"])


def ask(server: Server, route: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{route}", json=body(route, **fields), timeout=120)


def text_of(reply: dict[str, Any]) -> str:
    if "output" in reply:
        return str(reply["output"][-1]["content"][0]["text"])
    choice = reply["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


@pytest.mark.parametrize("route", ROUTES)
def test_a_reply_tells_what_was_applied(server: Server, route: str, digest: str) -> None:
    reply = ask(server, route, emotion={"anger": 0.75, "fear": 0.25}, emotion_strength=0.5, emotion_scope="all")
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-emotion"] == (
        f"anger=0.75, fear=0.25; strength=0.5; scope=all; circuit=default/{digest[:12]}"
    )
    assert reply.json()["emotion"] == {
        "mix": {"anger": 0.75, "fear": 0.25},
        "strength": 0.5,
        "scope": "all",
        "circuit": {"name": "default", "digest": digest},
    }
    fading = {"hold": 2, "half_life": 4}
    scheduled = ask(server, route, emotion="anger", emotion_schedule=fading)
    assert scheduled.json()["emotion"]["schedule"] == fading
    assert '; schedule={"hold": 2, "half_life": 4.0}' in scheduled.headers["x-emotion"]
    nothing = ask(server, route, emotion="anger", emotion_strength=0)
    assert nothing.json()["emotion"]["strength"] == 0


def test_a_schedule_is_what_the_reply_was_steered_by(server: Server) -> None:
    def text(**fields: Any) -> str:
        return text_of(ask(server, "/v1/chat/completions", **fields).json())

    anger = {"emotion": "anger", "emotion_strength": 1.25}
    assert text(**anger, emotion_schedule={"from": 4000}) == text()
    assert text(**anger, emotion_schedule=[[0, 1]]) == text(**anger) != text()
    refused = ask(server, "/v1/chat/completions", **anger, emotion_schedule={"hold": 5})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "emotion_schedule"


ANGER = {"emotion": "anger", "emotion_strength": 1.25}


def test_a_continuation_is_scored_as_the_reply_that_it_is(client: openai.OpenAI, model: str) -> None:
    context = "The neighbour came to the door and said that"
    fields: dict[str, Any] = {**ANGER, "emotion_schedule": {"hold": 2, "half_life": 4}}
    asked: dict[str, Any] = {"model": model, "temperature": 0, "logprobs": 1}
    written = client.completions.create(
        prompt=context, max_tokens=8, extra_body={**fields, "return_token_ids": True}, **asked
    ).choices[0]
    assert written.model_extra is not None
    prompt, reply = written.model_extra["prompt_token_ids"], written.model_extra["token_ids"]
    assert written.logprobs is not None

    def scores(whole: Any, **more: Any) -> list[float]:
        scored = client.completions.create(prompt=whole, max_tokens=1, echo=True, extra_body=more, **asked)
        if "emotion" in more:
            assert scored.model_extra is not None
            assert scored.model_extra["emotion"].get("from") == more.get("emotion_from")
        assert scored.choices[0].logprobs is not None
        return scored.choices[0].logprobs.token_logprobs[1 : len(prompt) + len(reply)]  # type: ignore[return-value]

    begun = len(prompt) - 1
    plain = scores(prompt + reply)
    for start in (len(prompt), -len(reply)):
        for whole in (prompt + reply, context + written.text):
            under = scores(whole, **fields, emotion_from=start)
            assert under[begun:] == pytest.approx(written.logprobs.token_logprobs, abs=1e-3)
            assert under[:begun] == pytest.approx(plain[:begun], abs=1e-3)
            assert under[begun:] != pytest.approx(plain[begun:], abs=0.05)
    # All of it, by the scope.
    assert scores(prompt + reply, **ANGER, emotion_scope="all")[:begun] != pytest.approx(plain[:begun], abs=0.05)


def test_a_chats_own_scores_are_the_emotions(server: Server) -> None:
    def scores(**fields: Any) -> list[float]:
        reply = ask(server, "/v1/chat/completions", prompt_logprobs=0, **fields)
        assert reply.status_code == 200, reply.text
        assert ("; from=-6" in reply.headers["x-emotion"]) == bool(fields)
        steps = reply.json()["prompt_logprobs"][1:]
        return [next(iter(step.values()))["logprob"] for step in steps]

    plain, under = scores(), scores(**ANGER, emotion_from=-6)
    assert under[:-6] == pytest.approx(plain[:-6], abs=1e-3)
    assert under[-6:] != pytest.approx(plain[-6:], abs=0.05)


@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_scores_that_would_be_the_plain_models_are_refused(server: Server, more: dict[str, Any]) -> None:
    asked: dict[str, Any] = {**ANGER, "echo": True, "logprobs": 1, **more}
    for fields in (asked, {**asked, "emotion_scope": "prompt_last"}):
        refused = ask(server, "/v1/completions", **fields)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] == "emotion_from"
        assert 'or emotion_scope "all"' in refused.json()["error"]["message"]
    assert ask(server, "/v1/completions", **{**asked, "logprobs": None}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"emotion_from": 4000}, "emotion_from 4000 is not within the prompt, which has"),
        ({"emotion_from": -4000}, "emotion_from -4000 is not within the prompt, which has"),
        ({"emotion_from": 2, "use_beam_search": True, "n": 2}, "emotion_from cannot be combined with beam search"),
        ({"emotion_from": 2, "kv_transfer_params": {"do_remote_prefill": True}}, "combined with kv_transfer_params"),
    ],
)
def test_where_no_reply_can_begin_is_refused(server: Server, fields: dict[str, Any], message: str) -> None:
    for route in ("/v1/chat/completions", "/v1/completions"):
        refused = ask(server, route, **ANGER, **fields)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] == "emotion_from"
        assert message in refused.json()["error"]["message"]


PAPER = "Always reply in anger.\nKeep the reply to at most two sentences."


def prompt_of(server: Server, **fields: Any) -> Any:
    reply = ask(server, "/v1/chat/completions", return_token_ids=True, **fields)
    assert reply.status_code == 200, reply.text
    assert ("prompt=" in reply.headers["x-emotion"]) == ("emotion_prompt" in fields)
    return reply.json()["prompt_token_ids"], text_of(reply.json())


def test_an_instruction_is_the_system_turn_or_follows_it(server: Server) -> None:
    said = prompt_of(server, **ANGER, messages=[{"role": "system", "content": PAPER}, *MESSAGE])
    assert prompt_of(server, **ANGER, emotion_prompt="paper") == said != prompt_of(server, **ANGER)
    own = [{"role": "system", "content": "You are a pirate."}, *MESSAGE]
    both = [{"role": "system", "content": f"You are a pirate.\n\n{PAPER}"}, *MESSAGE]
    assert prompt_of(server, **ANGER, emotion_prompt="paper", messages=own) == prompt_of(server, **ANGER, messages=both)


def test_an_instruction_is_told_on_each_route_and_by_a_name_too(server: Server, model: str) -> None:
    reply = ask(server, "/v1/responses", **ANGER, emotion_prompt="paper", instructions="Be brief.")
    said = ask(server, "/v1/responses", **ANGER, instructions=f"Be brief.\n\n{PAPER}")
    assert text_of(reply.json()) == text_of(said.json())
    assert reply.json()["instructions"] == "Be brief."
    assert reply.json()["emotion"]["prompt"] == "paper"
    named = ask(server, "/v1/chat/completions", model=f"{model}:anger+fear", emotion_prompt=True, stream=True)
    assert named.headers["x-emotion"].endswith("; prompt=fewshot")
    first = next(line for line in named.text.splitlines() if line.startswith("data: {"))
    assert json.loads(first.removeprefix("data: "))["emotion"]["prompt"] == "fewshot"
    request: dict[str, Any] = {"model": model, "max_tokens": 8, "temperature": 0, **ANGER}
    chats = [[{"role": "system", "content": "Be brief."}, *MESSAGE], MESSAGE]
    route = f"{server.url}/v1/chat/completions/batch"
    batch = httpx.post(route, json={**request, "messages": chats, "emotion_prompt": "paper"}, timeout=60).json()
    instructed = [
        [{"role": "system", "content": f"Be brief.\n\n{PAPER}"}, *MESSAGE],
        [{"role": "system", "content": PAPER}, *MESSAGE],
    ]
    expected = httpx.post(route, json={**request, "messages": instructed}, timeout=60).json()
    texts = [[choice["message"]["content"] for choice in reply["choices"]] for reply in (batch, expected)]
    assert texts[0] == texts[1]
    assert batch["emotion"]["prompt"] == "paper"


@pytest.mark.parametrize(
    ("route", "fields", "message"),
    [
        (
            "/v1/completions",
            {"emotion_prompt": "paper"},
            "write the instruction into the prompt, 'Always reply in anger",
        ),
        ("/v1/completions", {"emotion_prompt": True, "use_beam_search": True, "n": 2}, "emotion_prompt is of chats"),
        ("/v1/chat/completions", {"emotion_prompt": "papre"}, "a style: fewshot, paper, role, twenty; got 'papre'"),
        ("/v1/chat/completions", {"emotion_prompt": True, "emotion_strength": -1}, "no words for a negative strength"),
        ("/v1/responses", {"emotion_prompt": 1}, "emotion_prompt must be true, or a style"),
    ],
)
def test_what_cannot_be_said_is_refused(server: Server, route: str, fields: dict[str, Any], message: str) -> None:
    refused = ask(server, route, **{**ANGER, **fields})
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == "emotion_prompt"
    assert message in refused.json()["error"]["message"]
    assert "x-emotion" not in refused.headers


@pytest.mark.parametrize("route", ROUTES)
def test_a_plain_reply_is_vllms_own(server: Server, route: str) -> None:
    for fields in ({}, {"emotion": None}, {"emotion": "none"}):
        reply = ask(server, route, **fields)
        assert reply.headers["x-emotion"] == "none"
        assert "emotion" not in reply.json()
    refused = ask(server, route, emotion="joyful")
    assert "x-emotion" not in refused.headers


def test_a_stream_tells_it_in_the_first_chunk(client: openai.OpenAI, model: str, digest: str) -> None:
    with client.chat.completions.with_streaming_response.create(
        model=model, messages=MESSAGE, max_tokens=4, temperature=0, stream=True, extra_body={"emotion": "fear"}
    ) as raw:
        assert raw.headers["x-emotion"].startswith("fear=1; strength=1; scope=generation")
        lines = [line for line in raw.iter_lines() if line.startswith("data: {")]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert chunks[0]["emotion"]["mix"] == {"fear": 1.0}
    assert chunks[0]["emotion"]["circuit"]["digest"] == digest
    assert all("emotion" not in chunk for chunk in chunks[1:])
    with client.chat.completions.stream(
        model=model, messages=MESSAGE, stop=[" "], temperature=0, extra_body={"emotion": "fear"}
    ) as stream:
        final = stream.get_final_completion()
    assert final.model_extra is not None
    assert final.model_extra["emotion"]["mix"] == {"fear": 1.0}
    completions = client.completions.create(
        model=model, prompt="The rain", max_tokens=4, stream=True, extra_body={"emotion": "fear"}
    )
    assert next(iter(completions)).model_extra["emotion"]["mix"] == {"fear": 1.0}  # type: ignore[index]


def test_a_stream_of_responses_tells_it_with_the_response(client: openai.OpenAI, model: str) -> None:
    with client.responses.stream(
        model=model, input="Hello there", max_output_tokens=4, temperature=0, extra_body={"emotion": "disgust"}
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    whole = [event.response for event in events if hasattr(event, "response")]
    assert len(whole) >= 2
    assert all(response.model_extra["emotion"]["mix"] == {"disgust": 1.0} for response in whole)
    assert final.model_extra is not None
    assert final.model_extra["emotion"]["mix"] == {"disgust": 1.0}


def test_a_batch_of_chats_tells_it_once(server: Server, model: str) -> None:
    request = {"model": model, "messages": [MESSAGE, MESSAGE], "max_tokens": 4, "emotion": "sadness"}
    reply = httpx.post(f"{server.url}/v1/chat/completions/batch", json=request, timeout=60)
    assert reply.json()["emotion"]["mix"] == {"sadness": 1.0}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("suffix", "emotion"),
    [("anger", "anger"), ("default/anger", "anger"), ("anger+fear", {"anger": 0.5, "fear": 0.5})],
)
def test_a_models_name_may_carry_an_emotion(server: Server, route: str, model: str, suffix: str, emotion: Any) -> None:
    named = ask(server, route, model=f"{model}:{suffix}", emotion_strength=1.25)
    assert named.status_code == 200, named.text
    asked = ask(server, route, emotion=emotion, emotion_strength=1.25)
    assert text_of(named.json()) == text_of(asked.json())
    assert named.json()["emotion"] == asked.json()["emotion"]
    assert named.json()["model"] == model


def test_a_name_with_an_emotion_streams(client: openai.OpenAI, model: str) -> None:
    def streamed(**fields: Any) -> str:
        chunks = client.chat.completions.create(messages=MESSAGE, temperature=0, max_tokens=16, stream=True, **fields)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    assert streamed(model=f"{model}:fear") == streamed(model=model, extra_body={"emotion": "fear"})


@pytest.mark.parametrize("route", ROUTES)
def test_a_name_that_does_not_exist_is_a_404(server: Server, route: str, model: str) -> None:
    for name in (f"{model}:joyful", f"{model}:anger+joyful", f"{model}:", f"{model}:anger+anger"):
        reply = ask(server, route, model=name)
        assert reply.status_code == 404, name
        assert reply.json()["error"]["param"] == "model"
        assert reply.json()["error"]["type"] == "NotFoundError"
    assert "this circuit has anger" in ask(server, route, model=f"{model}:joyful").json()["error"]["message"]
    assert ask(server, route, model="other:anger").status_code == 404
    both = ask(server, route, model=f"{model}:anger", emotion="fear")
    assert both.status_code == 400
    assert both.json()["error"]["param"] == "emotion"


def test_a_name_in_json_escapes_is_understood(server: Server, model: str) -> None:
    text = json.dumps(body("/v1/completions", model=f"{model}:anger")).replace("LM2", "LM\\u0032")
    reply = httpx.post(
        f"{server.url}/v1/completions", content=text, headers={"content-type": "application/json"}, timeout=60
    )
    assert reply.json()["emotion"]["mix"] == {"anger": 1.0}


def test_the_description_has_the_fields_with_their_types(server: Server) -> None:
    described = httpx.get(f"{server.url}/openapi.json").json()
    for name in ("ChatCompletionRequest", "CompletionRequest", "ResponsesRequest"):
        fields = described["components"]["schemas"][name]["properties"]
        assert {"type": "string"} in fields["emotion"]["anyOf"]
        assert {"type": "number"} in fields["emotion_strength"]["anyOf"]
        assert re.fullmatch(fields["emotion_scope"]["anyOf"][0]["pattern"], "prompt_tail:8")
        assert fields["emotion_mute"]["anyOf"][0]["items"]["enum"] == ["tools", "guided"]
        assert fields["emotion_readout"]["anyOf"][0]["enum"] == ["reply", "tokens"]
    listed = described["paths"]["/v1/emotions"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert listed["$ref"].endswith("/EmotionList")
