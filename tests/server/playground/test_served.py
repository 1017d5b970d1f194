"""The page before a real server: what it shows is what the server answers to anybody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from playwright.sync_api import expect

from support.servers import Server

pytestmark = pytest.mark.engine

MESSAGE = "Hello there"
TOKENS = 16


def answered(url: str, **fields: Any) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    messages: Any = [{"role": "user", "content": MESSAGE}]
    made = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, max_tokens=TOKENS, seed=1, extra_body=fields
    )
    return str(made.choices[0].message.content)


def test_columns_show_what_the_server_writes_and_reads_and_sliders_change_it(
    tiny_server: Server, visit: Callable[..., Any]
) -> None:
    strong = {"emotion": {"anger": 1, "fear": 0.5}, "emotion_strength": 0.75, "emotion_schedule": [[0, 1], [6, 0.5]]}
    expected = [answered(tiny_server.url, **fields) for fields in ({}, {"emotion": "anger"}, strong)]
    assert len(set(expected)) == 3
    tab = visit(tiny_server.url)
    expect(tab.locator("header .model")).to_have_text("tiny")
    expect(tab.get_by_label("Model", exact=True)).to_have_count(0)
    for label, value in {"Temperature": "0", "Max tokens": str(TOKENS)}.items():
        tab.get_by_label(label).fill(value)
    columns = [tab.get_by_role("region", name=f"{side} column") for side in ("Left", "Right")]

    def told() -> list[str]:
        for column in columns:
            expect(column.locator(".meta")).to_contain_text("done", timeout=60_000)
        return [str(column.locator(".tokens").text_content()) for column in columns]

    tab.get_by_label("Message to both columns").fill(MESSAGE)
    tab.get_by_role("button", name="Send").click()
    assert told() == expected[:2]
    for column in columns:
        expect(column.get_by_role("img", name=f"Probabilities over {TOKENS} tokens")).to_be_visible()
        # Tokens that arrive together are one: how many depends on how busy the machine is.
        assert 1 <= column.locator(".token").count() <= TOKENS
    tab.get_by_label("fear, as a number").fill("0.5")
    tab.get_by_label("Strength, as a number").fill("0.75")
    tab.get_by_label("Schedule").select_option("points")
    tab.get_by_label("Points, token:share").fill("0:1, 6:0.5")
    tab.get_by_role("button", name="Answer again").click()
    expect(columns[1].locator(".meta")).to_contain_text("fear 0.5")
    assert told() == [expected[0], expected[2]]
    tab.get_by_label("Strength, as a number").fill("99")
    tab.get_by_role("button", name="Answer again").click()
    expect(columns[1].get_by_role("alert")).to_contain_text("over the circuit's maximum of")
    expect(columns[0].locator(".meta")).to_contain_text("done")


def test_a_server_that_was_not_asked_for_it_has_no_page(server: Server) -> None:
    assert httpx.get(f"{server.url}/playground").status_code == 404
