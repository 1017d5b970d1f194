"""Scenarios of one's own domain, by an endpoint that writes well or badly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emovllm.cli import main
from emovllm.errors import DataError, EndpointError
from emovllm_offline.data.messages import load_messages
from emovllm_offline.data.sev import check_sev, load_sev
from emovllm_offline.discovery.scenarios import Domain, Made, make
from emovllm_offline.endpoint.client import Endpoint
from support.stub import Refusal, Stub, stub_server

THEMES = ("Night shifts", "Freight & customs")


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server() as stub:
        yield stub


def sentences(number: int) -> dict[str, str]:
    """What a good writer answers."""
    record = load_sev("sev")[number]
    return {"scenario": record.scenario, **record.event.model_dump()}


def in_order(*others: Any) -> Any:
    """Answers `others` first, then one good scenario after the other."""
    left = iter([*others, *(json.dumps(sentences(number)) for number in range(160))])
    return lambda request: next(left)


def made(stub: Stub, out: Path, themes: tuple[str, ...] = THEMES, **options: Any) -> Made:
    endpoint = Endpoint("writer", stub.url, concurrency=1, retries=0)
    return make(endpoint, Domain(themes, **{"scenarios": 3, **options}), out, progress=False)


def test_sound_scenarios_are_written_in_turns(stub: Stub, tmp_path: Path) -> None:
    stub.answer = in_order()
    out = tmp_path / "new" / "mine.jsonl"
    assert made(stub, out, about="Nurses and drivers.") == Made(6, {})
    records = load_sev(out)
    assert [(record.skeleton_id, record.theme) for record in records[:3]] == [
        ("night-shifts_00", THEMES[0]),
        ("freight-customs_00", THEMES[1]),
        ("night-shifts_01", THEMES[0]),
    ]
    assert check_sev(records) == []
    assert len(load_messages(out)) == 18
    system, user = (message["content"] for message in stub.requests[1]["messages"])
    assert "Who writes: Nurses and drivers." in system
    assert f"Theme: {THEMES[0]}." in user
    assert sentences(0)["scenario"] in user, "what is written already"
    assert sentences(1)["scenario"] not in user.split("These are written already")[1]
    assert stub.requests[0]["response_format"]["type"] == "json_schema"


def test_what_is_wrong_is_told_and_written_again(stub: Stub, tmp_path: Path) -> None:
    happy = {**sentences(0), "scenario": "I am so happy."}
    stub.answer = in_order(json.dumps(happy), "No idea.", json.dumps({**sentences(0), "neutral": 3}))
    assert made(stub, tmp_path / "out.jsonl", THEMES[:1], scenarios=1) == Made(1, {})
    told = [request["messages"][-1]["content"] for request in stub.requests]
    assert "scenario: 4 words, expected 15 to 25" in told[1]
    assert "scenario: emotion words: happy" in told[1]
    assert "not a JSON object with scenario, positive, neutral, negative" in told[2]
    assert "event.neutral" in told[3]
    assert [len(request["messages"]) for request in stub.requests] == [2, 4, 4, 4], "the last attempt alone"


def test_the_same_again_is_no_new_scenario(stub: Stub, tmp_path: Path) -> None:
    stub.answer = in_order(json.dumps(sentences(0)))
    assert made(stub, tmp_path / "out.jsonl", THEMES[:1], scenarios=2) == Made(2, {})
    assert "scenario: the same sentence as night-shifts_00.scenario" in stub.requests[2]["messages"][-1]["content"]


@pytest.mark.parametrize("around", ["```json\n{}\n```", "Here it is: {} I hope it helps.", "<think>{{}}</think>{}"])
def test_what_models_write_around_json_is_left_out(stub: Stub, tmp_path: Path, around: str) -> None:
    stub.answer = lambda request: around.replace("{{}}", "hm").replace("{}", json.dumps(sentences(5)))
    assert made(stub, tmp_path / "out.jsonl", THEMES[:1], scenarios=1) == Made(1, {})


def test_the_same_command_goes_on(stub: Stub, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    stub.answer = failing_after(4)
    with pytest.raises(EndpointError):
        made(stub, out)
    assert len(load_sev(out)) == 4
    stub.requests.clear()
    stub.answer = in_order()
    # Of those that are there already nothing is taken again.
    assert made(stub, out) == Made(6, {})
    assert len(load_sev(out)) == 6
    stub.requests.clear()
    assert made(stub, out) == Made(6, {})
    assert stub.requests == []
    # More of them, and another theme, beside what is there.
    assert made(stub, out, (THEMES[0], "Harvest"), scenarios=4) == Made(8, {})
    ids = [record.skeleton_id for record in load_sev(out)]
    assert ids[:2] == ["night-shifts_00", "harvest_00"]
    assert sorted(id for id in ids[8:]) == [f"freight-customs_{number:02}" for number in range(3)]


def failing_after(count: int) -> Any:
    good = iter(range(count))

    def answer(request: dict[str, Any]) -> Any:
        number = next(good, None)
        return 500 if number is None else json.dumps(sentences(number))

    return answer


def test_a_model_that_cannot_is_given_up(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = iter(range(160))
    stub.answer = lambda request: (
        json.dumps(sentences(next(good))) if f"Theme: {THEMES[0]}" in request["messages"][1]["content"] else "{}"
    )
    words = ["data", "make", "writer", "--themes", ",".join(THEMES), "--scenarios", "2", "--attempts", "3"]
    out = tmp_path / "out.jsonl"
    assert main([*words, "--base-url", stub.url, "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert f"{THEMES[1]}: given up after 3 attempts" in said
    assert "2 of 4 scenarios" in said
    assert {record.theme for record in load_sev(out)} == {THEMES[0]}
    assert len(stub.requests) == 2 + 3


def test_a_refusal_is_told(stub: Stub, tmp_path: Path) -> None:
    stub.answer = lambda request: Refusal("the prompt is too long", "messages")
    (complaint,) = made(stub, tmp_path / "out.jsonl", THEMES[:1]).failed[THEMES[0]]
    assert "too long" in complaint


@pytest.mark.parametrize("themes", [("Work", "work!"), ("...",)])
def test_themes_need_names(stub: Stub, tmp_path: Path, themes: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="letters or digits"):
        made(stub, tmp_path / "out.jsonl", themes)


def test_a_file_of_something_else_is_left_alone(stub: Stub, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"user": "Hello"}\n')
    with pytest.raises(DataError, match=r"out\.jsonl, line 1"):
        made(stub, out)
    assert out.read_text() == '{"user": "Hello"}\n'
