"""What guards did, in answers on their way out: in each of their shapes, and from a real server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from emovllm.engine.requests import Record
from emovllm.guards import Acted, Guard
from emovllm_server.api.readouts import ReadoutAnswer
from support.bodies import MESSAGE, ROUTES, body
from support.servers import Server

STOP = Acted(Guard.parse("anger>0.9:stop"), 17)
FLAG = Acted(Guard.parse("fear>0.8x8:flag"), 9)
STOPPED = {"guard": "anger>0.9x4", "action": "stop", "token": 17}
FLAGGED = {"guard": "fear>0.8x8", "action": "flag", "token": 9}


def sent(record: Record, kind: str, *bodies: bytes, status: int = 200) -> list[bytes]:
    """The bodies as they arrive; the first message has the right length."""
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def answer() -> None:
        through = ReadoutAnswer(send, record).send
        headers = [(b"content-type", kind.encode())]
        if kind == "application/json":
            headers.append((b"content-length", str(sum(map(len, bodies))).encode()))
        await through({"type": "http.response.start", "status": status, "headers": headers})
        for number, part in enumerate(bodies):
            more = number + 1 < len(bodies)
            await through({"type": "http.response.body", "body": part, "more_body": more})

    asyncio.run(answer())
    arrived = [message["body"] for message in messages[1:]]
    length = dict(messages[0]["headers"]).get(b"content-length")
    assert length is None or int(length) == sum(map(len, arrived))
    return arrived


def whole(record: Record, answer: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps(answer).encode()
    return json.loads(b"".join(sent(record, "application/json", body[:5], body[5:])))  # type: ignore[no-any-return]


def streamed(record: Record, *events: dict[str, Any]) -> list[dict[str, Any]]:
    bodies = sent(record, "text/event-stream", *(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events))
    return [json.loads(body.removeprefix(b"data: ")) for body in bodies]


def test_each_choice_has_its_own() -> None:
    record = Record(acted={0: [FLAG, STOP], 2: [FLAG]})
    answer = whole(record, {"choices": [{"index": index, "text": "a"} for index in range(3)]})
    told = [choice.get("emotion_guard") for choice in answer["choices"]]
    assert told == [[FLAGGED, STOPPED], None, [FLAGGED]]
    assert not any("emotion_readout" in choice for choice in answer["choices"])


def test_a_response_has_them_all() -> None:
    assert whole(Record(acted={0: [STOP]}), {"output": []})["emotion_guard"] == [STOPPED]


def test_a_stream_tells_in_the_last_chunk_of_a_choice() -> None:
    record = Record(acted={1: [STOP]})
    chunks = [
        {"choices": [{"index": index, "delta": {"content": "a"}, "finish_reason": reason}]}
        for index, reason in ((0, None), (1, None), (1, "stop"), (0, "length"))
    ]
    told = [chunk["choices"][0].get("emotion_guard") for chunk in streamed(record, *chunks)]
    assert told == [None, None, [STOPPED], None]


def test_a_stream_of_a_response_tells_where_it_is_complete() -> None:
    events = [
        {"type": "response.output_text.delta", "delta": "a"},
        {"type": "response.completed", "response": {"output": []}},
    ]
    delta, completed = streamed(Record(acted={0: [FLAG]}), *events)
    assert "emotion_guard" not in delta
    assert completed["response"]["emotion_guard"] == [FLAGGED]


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_answers_in_which_none_acted_pass_unchanged(kind: str) -> None:
    bodies = [b'data: {"choices": [ {"index": 0,', b' "finish_reason": "stop"}]}\n\n']
    assert sent(Record(), kind, *bodies) == bodies


def test_errors_pass_unchanged() -> None:
    assert sent(Record(acted={0: [STOP]}), "application/json", b'{"error": 1}', status=400) == [b'{"error": 1}']


# The server of the tests flags replies of 100 tokens and more.
REAL = [{"guard": "anger>1e-06x100", "action": "flag", "token": 99}]
LENGTHS = {"/v1/chat/completions": "max_tokens", "/v1/completions": "max_tokens", "/v1/responses": "max_output_tokens"}


def asked(server: Server, route: str, tokens: int, **fields: Any) -> dict[str, Any]:
    asking = body(route, model="tiny", ignore_eos=True, **{LENGTHS[route]: tokens}, **fields)
    answer = httpx.post(f"{server.url}{route}", json=asking, timeout=120)
    answer.raise_for_status()
    return answer.json()  # type: ignore[no-any-return]


@pytest.mark.engine
@pytest.mark.parametrize("route", ROUTES)
def test_a_plain_request_is_watched(tiny_server: Server, route: str) -> None:
    answer = asked(tiny_server, route, 110)
    (told,) = answer.get("choices") or [answer]
    assert told["emotion_guard"] == REAL
    assert "emotion_readout" not in told
    assert "emotion_guard" not in json.dumps(asked(tiny_server, route, 20))


@pytest.mark.engine
def test_a_stream_and_its_choices_are_watched_and_counted(tiny_server: Server) -> None:
    def count() -> float:
        name = 'emovllm_guard_total{action="flag",guard="anger>1e-06x100"} '
        lines = httpx.get(f"{tiny_server.url}/metrics").text.splitlines()
        return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = count()
    client = openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="none", max_retries=0)
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGE, n=2, max_tokens=105, stream=True, extra_body={"ignore_eos": True}
    )
    choices = [choice for chunk in stream for choice in chunk.choices]
    told = {choice.index: choice for choice in choices if hasattr(choice, "emotion_guard")}
    assert sorted(told) == [0, 1]
    for choice in told.values():
        assert choice.emotion_guard == REAL
        assert choice.finish_reason == "length"
    assert count() == before + 2


@pytest.mark.engine
def test_guards_are_listed_and_beams_refused(tiny_server: Server) -> None:
    (card,) = httpx.get(f"{tiny_server.url}/v1/emotions").json()["guards"]
    assert card == {"guard": "anger>1e-06x100", "label": "anger", "bound": 1e-06, "tokens": 100, "action": "flag"}
    beams = body("/v1/completions", model="tiny", use_beam_search=True, n=2)
    refused = httpx.post(f"{tiny_server.url}/v1/completions", json=beams)
    assert refused.status_code == 400
    assert "cannot watch a beam search" in refused.json()["error"]["message"]
