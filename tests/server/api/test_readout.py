"""The read-out as a user of the ordinary `openai` client gets it, against Hugging Face's states through the probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from emovllm.probe import load_probe, probabilities
from support.bodies import MESSAGE, ROUTES, body
from support.engine import Ask
from support.oracle import Oracle
from support.servers import Server

pytestmark = pytest.mark.engine

EMOTION = {"emotion": {"anger": 0.7, "fear": 0.3}}
TOKENS = 24


@pytest.fixture(scope="module")
def tiny_client(tiny_server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def tiny_oracle(tiny_command: list[str]) -> Oracle:
    return Oracle(tiny_command[2], Path(tiny_command[4]))


@pytest.fixture(scope="module")
def labels(tiny_command: list[str]) -> list[str]:
    return list(load_probe(tiny_command[4]).spec.labels)


def asked(detail: str = "tokens", **fields: Any) -> dict[str, Any]:
    return {"emotion_readout": detail, "return_token_ids": True, "ignore_eos": True, **fields}


def chat(client: openai.OpenAI, stream: bool = False, **extra: Any) -> Any:
    return client.chat.completions.create(
        model="tiny", messages=MESSAGE, temperature=0, max_tokens=TOKENS, stream=stream, extra_body=extra
    )


def streamed(client: openai.OpenAI, **extra: Any) -> list[Any]:
    """The choices of a stream's chunks."""
    return [choice for chunk in chat(client, stream=True, **extra) for choice in chunk.choices]


def expected(oracle: Oracle, fields: dict[str, Any], prompt: list[int], tokens: list[int]) -> np.ndarray:
    """Probabilities of each token, [tokens, labels]."""
    return probabilities(np.array(oracle.read(Ask(prompt, fields), tokens)))


def check(told: dict[str, Any], labels: list[str], right: np.ndarray) -> None:
    np.testing.assert_allclose(told["tokens"], right, atol=1e-4)
    assert told["labels"] == labels
    np.testing.assert_allclose([told["prompt"][name] for name in labels], right[0], atol=1e-4)
    np.testing.assert_allclose([told["reply"][name] for name in labels], right.mean(0), atol=1e-4)


@pytest.mark.parametrize("fields", [EMOTION, {}, {"emotion": "anger", "emotion_scope": "all"}])
def test_a_reply_tells_what_the_states_that_wrote_it_read_as(
    tiny_client: openai.OpenAI, tiny_oracle: Oracle, labels: list[str], fields: dict[str, Any]
) -> None:
    reply = chat(tiny_client, **asked(**fields))
    (choice,) = reply.choices
    assert len(choice.token_ids) == TOKENS
    check(choice.emotion_readout, labels, expected(tiny_oracle, fields, reply.prompt_token_ids, choice.token_ids))
    # The text is what it is without being read.
    assert choice.message.content == chat(tiny_client, ignore_eos=True, **fields).choices[0].message.content


def test_a_stream_tells_each_tokens_reading_with_it_and_the_replys_at_its_end(tiny_client: openai.OpenAI) -> None:
    whole = chat(tiny_client, **asked(**EMOTION)).choices[0].emotion_readout
    choices = streamed(tiny_client, **asked(**EMOTION))
    told = [getattr(choice, "emotion_readout", None) for choice in choices]
    for choice, part in zip(choices, told, strict=True):
        # Each chunk's tokens with it.
        assert len(part["tokens"] if part else []) == len(getattr(choice, "token_ids", None) or [])
    tokens = [token for part in told if part for token in part["tokens"]]
    assert tokens == whole["tokens"]
    assert {**told[-1], "tokens": tokens} == whole
    assert all(set(part) == {"tokens"} for part in told[:-1] if part)


def test_a_stream_of_whole_replies_tells_it_at_its_end_alone(tiny_client: openai.OpenAI) -> None:
    whole = chat(tiny_client, **asked("reply", **EMOTION)).choices[0].emotion_readout
    assert set(whole) == {"probe", "layer", "labels", "prompt", "reply"}
    told = [getattr(choice, "emotion_readout", None) for choice in streamed(tiny_client, **asked("reply", **EMOTION))]
    assert told[-1] == whole
    assert not any(told[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_each_choice_of_each_prompt_has_its_own(
    tiny_client: openai.OpenAI, tiny_oracle: Oracle, labels: list[str], stream: bool
) -> None:
    prompts, weak = ["The rain", "A letter came"], {"emotion": "fear", "emotion_strength": 0.1}
    made = tiny_client.completions.create(
        model="tiny",
        prompt=prompts,
        n=2,
        temperature=2.0,
        seed=3,
        max_tokens=8,
        stream=stream,
        extra_body=asked(**weak),
    )
    tokens: dict[int, list[int]] = {}
    prompt_ids: dict[int, list[int]] = {}
    told: dict[int, dict[str, Any]] = {}
    for choice in [choice for chunk in made for choice in chunk.choices] if stream else made.choices:  # type: ignore[union-attr]
        tokens.setdefault(choice.index, []).extend(choice.token_ids or [])
        if getattr(choice, "prompt_token_ids", None):
            prompt_ids[choice.index] = choice.prompt_token_ids
        if part := getattr(choice, "emotion_readout", None):
            so_far = told.get(choice.index, {}).get("tokens", [])
            told[choice.index] = {**part, "tokens": so_far + part["tokens"]}
    assert sorted(told) == [0, 1, 2, 3]
    assert len({tuple(each) for each in tokens.values()}) == 4
    for index, readout in told.items():
        right = expected(tiny_oracle, weak, prompt_ids[index], tokens[index])
        check(readout, labels, right)


def test_a_response_and_its_stream_tell_the_same(tiny_client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "tiny", "input": "Hello", "temperature": 0, "max_output_tokens": 12}
    whole = tiny_client.responses.create(**fields, extra_body=asked(emotion="anger")).emotion_readout  # type: ignore[attr-defined]
    assert len(whole["tokens"]) == 12
    events = list(tiny_client.responses.create(**fields, stream=True, extra_body=asked(emotion="anger")))
    parts = [part["tokens"] for event in events if (part := getattr(event, "emotion_readout", None))]
    last = events[-1].response.emotion_readout
    tokens = [token for part in [*parts, last["tokens"]] for token in part]
    assert {**last, "tokens": tokens} == whole


def test_several_conversations_in_one_request_have_their_own(tiny_server: Server) -> None:
    messages = [[{"role": "user", "content": text}] for text in ("Hello", "The rain came early")]
    asking = {"model": "tiny", "temperature": 0, "max_tokens": 6, "emotion_readout": "reply"}

    def post(route: str, **fields: Any) -> list[Any]:
        answer = httpx.post(f"{tiny_server.url}{route}", json={**asking, **fields}, timeout=60)
        answer.raise_for_status()
        return [choice["emotion_readout"] for choice in answer.json()["choices"]]

    together = post("/v1/chat/completions/batch", messages=messages)
    assert together == [post("/v1/chat/completions", messages=each)[0] for each in messages]
    assert together[0] != together[1]


def test_what_is_read_is_listed(tiny_server: Server, labels: list[str]) -> None:
    reading = httpx.get(f"{tiny_server.url}/v1/emotions").json()["reading"]
    assert reading["labels"] == labels
    assert {"probe", "layer", "labels"} == set(reading)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("value", ["yes", True, ["tokens"]])
def test_other_values_are_refused(tiny_server: Server, route: str, value: Any) -> None:
    refused = httpx.post(f"{tiny_server.url}{route}", json=body(route, model="tiny", emotion_readout=value))
    assert refused.status_code == 400
    assert "emotion_readout must be one of reply, tokens" in refused.json()["error"]["message"]


def test_beams_are_not_read(tiny_server: Server) -> None:
    beams = body("/v1/completions", model="tiny", use_beam_search=True, n=2, emotion_readout="reply")
    refused = httpx.post(f"{tiny_server.url}/v1/completions", json=beams)
    assert refused.status_code == 400
    assert "cannot be combined with beam search" in refused.json()["error"]["message"]
