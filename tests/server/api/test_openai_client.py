"""The server as a user of the ordinary `openai` client sees it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from emovllm_offline.data.sev import expand, load_sev
from emovllm_offline.judges.local import LocalJudge
from support.bodies import MESSAGE, ROUTES, body
from support.circuits import SIX
from support.servers import Server

README = "My neighbour borrowed my bike and brought it back with a flat tyre."

pytestmark = pytest.mark.engine


def chat(client: openai.OpenAI, model: str, **fields: Any) -> str:
    reply = client.chat.completions.create(
        model=model, messages=MESSAGE, temperature=0, max_tokens=32, extra_body=fields or None
    )
    return reply.choices[0].message.content or ""


def test_the_default_model_is_served_under_its_name(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == [
        "SmolLM2-135M-Instruct",
        *(f"SmolLM2-135M-Instruct:{name}" for name in SIX),
    ]
    assert {model.parent for model in listed[1:]} == {"SmolLM2-135M-Instruct"}  # type: ignore[attr-defined]


def test_six_emotions_give_six_replies(client: openai.OpenAI, model: str) -> None:
    names = [*SIX, "none"]
    with ThreadPoolExecutor(len(names)) as pool:
        texts = pool.map(lambda name: chat(client, model, **({} if name == "none" else {"emotion": name})), names)
    replies = dict(zip(names, texts, strict=True))
    assert len(set(replies.values())) == 7, replies
    assert all(reply.strip() for reply in replies.values())


def test_the_default_model_feels(client: openai.OpenAI, model: str) -> None:
    """Of the README's message and of SEV's first: blind, by the local judge. Other machines round differently."""

    def reply(asked: tuple[str, str]) -> str:
        user, name = asked
        made = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": user}],
            temperature=0,
            max_tokens=60,
            extra_body={"emotion": name},
        )
        return made.choices[0].message.content or ""

    users = [README, *(item.user for item in expand(load_sev("sev")[:2])[::3])]
    asked = [(user, name) for user in users for name in SIX]
    with ThreadPoolExecutor(len(asked)) as pool:
        replies = list(pool.map(reply, asked))
    targets = [name for _, name in asked]
    felt = [verdict.match for verdict in LocalJudge(SIX).judge(replies, targets)]
    assert sum(felt) >= 0.6 * len(felt), list(zip(targets, felt, replies, strict=True))


def test_the_same_request_gives_the_same_reply(client: openai.OpenAI, model: str) -> None:
    assert chat(client, model, emotion="anger") == chat(client, model, emotion="anger")


def test_no_emotion_and_zero_strength_are_the_plain_reply(client: openai.OpenAI, model: str) -> None:
    plain = chat(client, model)
    assert chat(client, model, emotion=None) == plain
    assert chat(client, model, emotion="anger", emotion_strength=0) == plain
    assert chat(client, model, emotion={"fear": 0.0}) == plain


def test_strength_blend_and_scope_change_the_reply(client: openai.OpenAI, model: str) -> None:
    replies = [
        chat(client, model, emotion="happiness"),
        chat(client, model, emotion="happiness", emotion_strength=-1.0),
        chat(client, model, emotion={"happiness": 0.5, "fear": 0.5}),
        chat(client, model, emotion="happiness", emotion_scope="prompt_last"),
    ]
    assert len(set(replies)) == len(replies)
    assert chat(client, model, emotion={"happiness": 1.0}, emotion_scope="generation") == replies[0]


def test_a_stream_says_what_the_whole_reply_says(client: openai.OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model, messages=MESSAGE, temperature=0, max_tokens=32, stream=True, extra_body={"emotion": "sadness"}
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert streamed == chat(client, model, emotion="sadness")


def test_completions_take_an_emotion(client: openai.OpenAI, model: str) -> None:
    def complete(**fields: Any) -> str:
        return (
            client.completions.create(
                model=model, prompt="When I opened the door,", temperature=0, max_tokens=24, extra_body=fields
            )
            .choices[0]
            .text
        )

    assert len({complete(), complete(emotion="fear"), complete(emotion="happiness")}) == 3


def test_responses_take_an_emotion(client: openai.OpenAI, model: str) -> None:
    def respond(**fields: Any) -> str:
        return client.responses.create(
            model=model, input=MESSAGE[0]["content"], temperature=0, max_output_tokens=24, extra_body=fields
        ).output_text

    assert len({respond(), respond(emotion="fear"), respond(emotion="happiness")}) == 3
    with client.responses.stream(
        model=model, input=MESSAGE[0]["content"], temperature=0, max_output_tokens=24, extra_body={"emotion": "fear"}
    ) as stream:
        streamed = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert streamed == respond(emotion="fear")


def test_mixed_concurrent_requests_each_get_their_own_emotion(server: Server, model: str) -> None:
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

    async def ask(name: str) -> str:
        reply = await client.chat.completions.create(
            model=model, messages=MESSAGE, temperature=0, max_tokens=16, extra_body={"emotion": name}
        )
        return reply.choices[0].message.content or ""

    async def ask_all() -> list[str]:
        return await asyncio.gather(*(ask(name) for _ in range(3) for name in SIX))

    replies = asyncio.run(ask_all())
    assert len(set(replies)) == len(SIX)
    assert replies[:6] == replies[6:12] == replies[12:]


def test_several_samples_of_one_request_are_all_steered(client: openai.OpenAI, model: str) -> None:
    def samples(**fields: Any) -> list[str | None]:
        reply = client.chat.completions.create(
            model=model, messages=MESSAGE, temperature=0.8, seed=1, n=3, max_tokens=16, extra_body=fields
        )
        return [choice.message.content for choice in reply.choices]

    for steered, plain in zip(samples(emotion="anger", emotion_strength=1.2), samples(), strict=True):
        assert steered != plain


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_emotion_is_a_400_that_names_the_six(server: Server, route: str, stream: bool) -> None:
    reply = httpx.post(f"{server.url}{route}", json=body(route, emotion="joyful", stream=stream), timeout=60)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == "emotion"
    assert error["code"] == 400
    assert "unknown emotion 'joyful'" in error["message"]
    assert all(name in error["message"] for name in SIX)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"emotion": {}}, "emotion"),
        ({"emotion": ["anger"]}, "emotion"),
        ({"emotion": {"anger": "much"}}, "emotion"),
        ({"emotion": {"anger": True}}, "emotion"),
        ({"emotion": "anger", "emotion_strength": 1e6}, "emotion_strength"),
        ({"emotion": "anger", "emotion_strength": "2"}, "emotion_strength"),
        ({"emotion": "anger", "emotion_scope": "everywhere"}, "emotion_scope"),
        ({"emotion_strength": 1.0}, "emotion_strength"),
        ({"emotion_scope": "all"}, "emotion_scope"),
        ({"vllm_xargs": {"emotion": "joyful"}}, "emotion"),
    ],
)
def test_bad_values_are_a_400_by_field(server: Server, route: str, fields: dict[str, Any], param: str) -> None:
    reply = httpx.post(f"{server.url}{route}", json=body(route, **fields), timeout=60)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 400])
def test_numbers_that_are_none_are_refused(server: Server, number: str) -> None:
    text = '{"model":"SmolLM2-135M-Instruct","prompt":"a","max_tokens":2,"emotion":"anger","emotion_strength":%s}'
    headers = {"content-type": "application/json"}
    reply = httpx.post(f"{server.url}/v1/completions", content=text % number, headers=headers, timeout=60)
    assert 400 <= reply.status_code < 500, reply.text


def test_the_client_raises_bad_request(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="this circuit has anger"):
        chat(client, model, emotion="joyful")


def test_beam_search_takes_an_emotion(server: Server) -> None:
    route = "/v1/completions"

    def beams(**fields: Any) -> list[str]:
        asked = body(route, use_beam_search=True, n=2, **fields)
        reply = httpx.post(f"{server.url}{route}", json=asked, timeout=120)
        assert reply.status_code == 200, reply.text
        return [choice["text"] for choice in reply.json()["choices"]]

    assert beams(emotion="anger") != beams()
    assert beams(emotion="anger", emotion_strength=0) == beams()
    wrong = body(route, use_beam_search=True, n=2, emotion="joyful")
    refused = httpx.post(f"{server.url}{route}", json=wrong, timeout=60)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "emotion"


@pytest.mark.parametrize("key", ["emotion", "\\u0065motion"])
def test_a_route_that_knows_no_emotion_refuses_one(server: Server, key: str) -> None:
    headers = {"content-type": "application/json"}
    for path, text in (
        ("/v1/messages", '"max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]'),
        ("/tokenize", '"prompt": "Hello"'),
    ):
        content = f'{{"model": "SmolLM2-135M-Instruct", {text}, "%s": "anger"}}'
        refused = httpx.post(f"{server.url}{path}", content=content % key, headers=headers, timeout=60)
        assert refused.status_code == 400, path
        assert "has no effect on" in refused.json()["error"]["message"]
        served = httpx.post(f"{server.url}{path}", content=content % "other", headers=headers, timeout=60)
        assert served.status_code == 200, served.text


def test_batched_chats_take_an_emotion(server: Server, client: openai.OpenAI, model: str) -> None:
    request = {"model": model, "messages": [MESSAGE, MESSAGE], "temperature": 0, "max_tokens": 32}
    path = f"{server.url}/v1/chat/completions/batch"
    plain = httpx.post(path, json=request, timeout=60).json()
    sad = httpx.post(path, json={**request, "emotion": "sadness"}, timeout=60).json()
    assert plain["choices"][0]["message"]["content"] != sad["choices"][0]["message"]["content"]
    assert httpx.post(path, json={**request, "emotion": "joyful"}, timeout=60).status_code == 400


def test_emotions_are_listed_with_their_strengths(server: Server) -> None:
    listed = httpx.get(f"{server.url}/v1/emotions").json()
    assert [emotion["id"] for emotion in listed["data"]] == list(SIX)
    for emotion in listed["data"]:
        assert emotion["recommended_strength"] == 1.0
        assert emotion["max_strength"] >= 1.0
        assert emotion["circuit"] == "default"
    [circuit] = listed["circuits"]
    assert circuit["id"] == "default"
    assert circuit["emotions"] == list(SIX)
    assert len(circuit["digest"]) == 64


def test_the_listed_maximum_is_the_cap(server: Server, client: openai.OpenAI, model: str) -> None:
    for emotion in httpx.get(f"{server.url}/v1/emotions").json()["data"]:
        name, cap = emotion["id"], emotion["max_strength"]
        assert chat(client, model, emotion=name, emotion_strength=cap)
        with pytest.raises(openai.BadRequestError, match="over the circuit's maximum"):
            chat(client, model, emotion=name, emotion_strength=cap * 1.001)


def test_circuits_are_closed_where_no_admin_key_is(server: Server) -> None:
    closed = httpx.get(f"{server.url}/v1/emotions/circuits", headers={"x-emovllm-admin-key": "any"})
    assert closed.status_code == 403
    assert "start it with --admin-key" in closed.json()["error"]["message"]


def test_the_shipped_probe_reads_what_the_default_model_is_made_to_feel(client: openai.OpenAI, model: str) -> None:
    """Fitted to comments of strangers, it has seen neither the circuit nor a reply."""

    def readout(name: str) -> dict[str, float]:
        made = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": README}],
            temperature=0,
            max_tokens=40,
            extra_body={"emotion": name, "emotion_readout": "reply"},
        )
        read: dict[str, float] = made.choices[0].emotion_readout["reply"]  # type: ignore[attr-defined]
        return read

    with ThreadPoolExecutor(len(SIX)) as pool:
        readouts = list(pool.map(readout, SIX))
    for read in readouts:
        assert set(read) == {"neutral", *SIX}
        assert sum(read.values()) == pytest.approx(1, abs=1e-3)
    leading = [max(SIX, key=read.__getitem__) for read in readouts]
    assert sum(lead == name for lead, name in zip(leading, SIX, strict=True)) >= 4, leading
