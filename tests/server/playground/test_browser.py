"""The page in a real browser, before a stand-in for the server that answers in fixed chunks."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest
from playwright.sync_api import expect

from support.standin import CIRCUIT, EMOTIONS, LABELS, StandIn, end, reply, text, told

pytestmark = pytest.mark.slow
Visit = Callable[..., Any]
CALM = [0.1, 0.1, 0.1, 0.7]
ANGRY = [0.8, 0.1, 0.05, 0.05]


def column(tab: Any, side: str) -> Any:
    return tab.get_by_role("region", name=f"{side} column")


def send(tab: Any, message: str) -> None:
    tab.get_by_label("Message to both columns").fill(message)
    tab.get_by_role("button", name="Send").click()


def settled(tab: Any, turns: int = 1, state: str = "done") -> None:
    """Waits until both columns have ended that many turns."""
    for side in ("Left", "Right"):
        expect(column(tab, side).locator(".meta", has_text=state)).to_have_count(turns)


def weigh(tab: Any, **weights: float) -> None:
    for name, weight in weights.items():
        tab.get_by_label(f"{name}, as a number").fill(str(weight))


def by_emotion(requests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The last request of each column, plain or steered."""
    return {"plain" if asked.get("emotion") == "none" else "steered": asked for asked in requests[-2:]}


def test_a_message_is_asked_of_both_columns_and_nothing_else_differs(standin: StandIn, visit: Visit) -> None:
    tab = visit(standin.url)
    send(tab, "Hello there")
    settled(tab)
    asked = by_emotion(standin.requests)
    assert len(standin.requests) == 2
    assert asked["steered"] == {**asked["plain"], "emotion": "anger"}
    assert asked["plain"] == {
        "model": "some-model",
        "messages": [{"role": "user", "content": "Hello there"}],
        "emotion": "none",
        "emotion_readout": "tokens",
        "temperature": 0.7,
        "max_tokens": 120,
        "seed": 1,
        "stream": True,
    }
    expect(column(tab, "Left").locator(".tokens")).to_have_text('You said Hello there ["none" x1] below []')
    expect(column(tab, "Right").locator(".tokens")).to_have_text('You said Hello there ["anger" x1] below []')
    meta = column(tab, "Right").locator(".meta")
    expect(meta).to_contain_text("steered · anger · strength 1 · generation · reads as anger 80% · done")


def test_models_and_adapters_may_be_chosen_and_names_that_carry_an_emotion_are_none(
    standin: StandIn, visit: Visit
) -> None:
    expect(visit(standin.url).get_by_label("Model", exact=True)).to_have_count(0)
    standin.adapters = ["adapter:anger", "other"]
    tab = visit(standin.url)
    chosen = tab.get_by_label("Model", exact=True)
    expect(chosen).to_be_visible()
    assert chosen.get_by_role("option").all_inner_texts() == ["some-model", "adapter:anger", "other"]
    chosen.select_option("other")
    send(tab, "Hello")
    settled(tab)
    assert [asked["model"] for asked in standin.requests] == ["other", "other"]


def test_a_reply_is_shown_while_it_is_written(standin: StandIn, visit: Visit) -> None:
    more = threading.Event()
    standin.answer = lambda asked: [text("First", CALM), more, text(", then", CALM), end([CALM] * 2)]
    tab = visit(standin.url)
    send(tab, "Hello")
    for side in ("Left", "Right"):
        expect(column(tab, side).locator(".tokens")).to_have_text("First")
        expect(column(tab, side).locator("polyline")).to_have_count(len(LABELS))
    expect(tab.get_by_role("button", name="Stop")).to_be_visible()
    expect(column(tab, "Left").locator(".reply")).to_have_attribute("aria-busy", "true")
    more.set()
    settled(tab)
    expect(column(tab, "Left").locator(".tokens")).to_have_text("First, then")
    expect(tab.get_by_role("button", name="Stop")).to_have_count(0)


def test_stop_ends_both_and_keeps_what_was_written(standin: StandIn, visit: Visit) -> None:
    standin.answer = lambda asked: [text("Begun", CALM), threading.Event(), end([CALM])]
    tab = visit(standin.url)
    send(tab, "Hello")
    expect(column(tab, "Right").locator(".tokens")).to_have_text("Begun")
    expect(column(tab, "Left").locator(".tokens")).to_have_text("Begun")
    tab.get_by_role("button", name="Stop").click()
    settled(tab, state="stopped")
    expect(column(tab, "Left").locator(".tokens")).to_have_text("Begun")
    # The server is told, which would write on otherwise.
    for _ in range(100):
        if standin.left == 2:
            break
        tab.wait_for_timeout(20)
    assert standin.left == 2


def test_sliders_change_the_reply(standin: StandIn, visit: Visit) -> None:
    tab = visit(standin.url)
    send(tab, "Hello")
    settled(tab)
    before = [column(tab, side).locator(".tokens").inner_text() for side in ("Left", "Right")]
    # By keyboard, as a slider is moved: five steps of 0.05 down from 1, and two up from 0.
    tab.get_by_label("anger", exact=True).focus()
    for _ in range(5):
        tab.keyboard.press("ArrowLeft")
    tab.get_by_label("fear", exact=True).focus()
    for _ in range(2):
        tab.keyboard.press("ArrowRight")
    tab.get_by_label("Strength", exact=True).fill("0.8")
    tab.get_by_role("button", name="Answer again").click()
    expect(column(tab, "Right").locator(".tokens")).to_contain_text('{"anger": 0.75, "fear": 0.1} x0.8')
    settled(tab)
    after = [column(tab, side).locator(".tokens").inner_text() for side in ("Left", "Right")]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)
    assert by_emotion(standin.requests)["steered"]["emotion_strength"] == 0.8
    # In place of the first answers.
    assert [len(asked["messages"]) for asked in standin.requests] == [1] * 4
    tab.get_by_role("button", name="None").click()
    tab.get_by_role("button", name="Answer again").click()
    expect(column(tab, "Right").locator(".tokens")).to_contain_text('"none"')


SCHEDULES: list[tuple[str, dict[str, str], Any]] = [
    ("fade", {"Held, tokens": "5", "Half-life, tokens": "12"}, {"hold": 5, "half_life": 12}),
    ("window", {"From token": "8", "To before token": ""}, {"from": 8}),
    ("window", {"From token": "8", "To before token": "64"}, {"from": 8, "to": 64}),
    ("points", {"Points, token:share": "0:1, 50:0.3"}, [[0, 1], [50, 0.3]]),
    # The server says what is wrong with it.
    ("points", {"Points, token:share": "0 to 1"}, "0 to 1"),
    ("level", {}, None),
]


def test_schedules_and_a_scope_are_sent_as_they_are_set(standin: StandIn, visit: Visit) -> None:
    tab = visit(standin.url)
    tab.get_by_label("Scope").select_option("generation")
    for turns, (form, fields, expected) in enumerate(SCHEDULES, 1):
        tab.get_by_label("Schedule").select_option(form)
        for label, value in fields.items():
            tab.get_by_label(label, exact=True).fill(value)
        send(tab, "Hello")
        settled(tab, turns)
        asked = by_emotion(standin.requests)
        assert asked["steered"].get("emotion_schedule") == expected
        assert asked["steered"]["emotion_scope"] == "generation"
        # With the plain model these have no meaning, and are refused.
        assert not {"emotion_schedule", "emotion_scope", "emotion_strength"} & set(asked["plain"])
        drawn = isinstance(expected, dict | list)
        expect(tab.get_by_role("img", name="The share of the strength")).to_have_count(int(drawn))


def test_what_goes_by_what_is_read_and_written_is_asked_for_and_told(standin: StandIn, visit: Visit) -> None:
    standin.phases = ["thinking"]
    guard = {"guard": "anger>0.9x4", "action": "flag"}
    standin.guards = [{**guard, "label": "anger", "bound": 0.9, "tokens": 4}]
    ended = end([ANGRY])
    ended["choices"][0]["emotion_guard"] = [{**guard, "token": 17}]
    circuit = {"name": "default", "digest": "0"}
    applied = {"mix": {"anger": 1}, "strength": 1, "scope": "answer", "circuit": circuit, "prompt": "paper"}
    applied["target"] = {"level": 0.6, "rate": 1}
    first = {**text("Grr", ANGRY), "emotion": applied}
    standin.answer = lambda asked: [text("Well", CALM), end([CALM])] if asked["emotion"] == "none" else [first, ended]
    tab = visit(standin.url)
    tab.get_by_label("Scope").select_option("answer")
    tab.get_by_label("Hold what is read at").fill("0.6")
    tab.get_by_label("Ask for the emotion in words as well").check()
    send(tab, "Hello")
    settled(tab)
    asked = by_emotion(standin.requests)
    wanted = {"emotion": "anger", "emotion_scope": "answer", "emotion_target": 0.6, "emotion_prompt": True}
    assert asked["steered"] == {**asked["plain"], **wanted}
    line = column(tab, "Right").locator(".meta")
    for said in ("answer", "prompt paper", "held at 0.6", "guard anger>0.9x4: flag at token 17"):
        expect(line).to_contain_text(said)
    expect(column(tab, "Left").locator(".meta")).not_to_contain_text("guard")
    tab.get_by_text("Circuits and caps").click()
    expect(tab.get_by_text("Guard anger>0.9x4: flag.")).to_be_visible()


def test_without_a_readout_or_a_parser_what_needs_them_is_not_offered(standin: StandIn, visit: Visit) -> None:
    standin.reading = None
    tab = visit(standin.url)
    expect(tab.get_by_label("Hold what is read at")).to_have_count(0)
    expect(tab.get_by_label("Scope").locator("option")).to_have_count(4)


def test_a_number_may_be_typed_while_replies_are_written(standin: StandIn, visit: Visit) -> None:
    more = threading.Event()
    standin.answer = lambda asked: [text("Begun", CALM), more, text(" ended", CALM), end([CALM] * 2)]
    tab = visit(standin.url)
    send(tab, "Hello")
    expect(column(tab, "Right").locator(".tokens")).to_have_text("Begun")
    strength = tab.get_by_label("Strength, as a number")
    strength.fill("")
    strength.press_sequentially("0.")
    more.set()
    settled(tab)
    strength.press_sequentially("75")
    expect(strength).to_have_value("0.75")
    expect(tab.get_by_label("Strength", exact=True)).to_have_value("0.75")
    # Without a number it stays as it was.
    strength.fill("")
    strength.blur()
    expect(strength).to_have_value("0.75")


def test_the_preview_of_a_schedule_is_what_the_engine_computes(standin: StandIn, visit: Visit) -> None:
    import numpy as np

    from emovllm.schedule import Schedule

    tab = visit(standin.url)
    schedules: list[Any] = [{"hold": 5, "half_life": 12}, {"hold": 0, "half_life": 3.5}]
    schedules += [{"from": 8}, {"from": 2, "to": 64}]
    schedules += [[[0, 1], [50, 0.3]], [[3, 0.2]], [[5, 0], [6, 1], [90, 0.5]]]
    code = """async (schedules) => {
        const { share } = await import("/playground/request.js");
        return schedules.map((schedule) => Array.from({ length: 121 }, (_, token) => share(schedule, token)));
    }"""
    for schedule, drawn in zip(schedules, tab.evaluate(code, schedules), strict=True):
        np.testing.assert_allclose(drawn, Schedule.read(schedule).shares(np.arange(121)), atol=1e-6)


def test_the_prompted_column_is_asked_in_words_below_the_system_prompt(standin: StandIn, visit: Visit) -> None:
    tab = visit(standin.url)
    tab.get_by_label("Left column", exact=True).select_option("prompted")
    tab.get_by_label("System prompt").fill("Be brief.")
    weigh(tab, fear=0.5)
    for label, value in {"Temperature": "0", "Max tokens": "7", "Seed": ""}.items():
        tab.get_by_label(label).fill(value)
    send(tab, "Hello")
    settled(tab)
    asked = by_emotion(standin.requests)
    systems = {name: request["messages"][0] for name, request in asked.items()}
    assert systems["steered"] == {"role": "system", "content": "Be brief."}
    assert systems["plain"] == {"role": "system", "content": "Be brief.\nAlways reply in anger and fear."}
    assert asked["plain"]["messages"][1:] == [{"role": "user", "content": "Hello"}]
    for request in asked.values():
        assert (request["temperature"], request["max_tokens"], "seed" in request) == (0, 7, False)
    tab.get_by_label("Instruction of the prompted column").fill("Rage.")
    tab.get_by_role("button", name="Answer again").click()
    expect(column(tab, "Left").locator(".tokens")).to_contain_text("Rage.")
    tab.get_by_role("button", name="As the emotions say").click()
    expect(tab.get_by_label("Instruction of the prompted column")).to_have_value("Always reply in anger and fear.")


def test_each_column_goes_on_from_its_own_replies(standin: StandIn, visit: Visit) -> None:
    standin.answer = lambda asked: reply(("calm" if asked["emotion"] == "none" else "angry", CALM))
    tab = visit(standin.url)
    send(tab, "One")
    settled(tab)
    send(tab, "Two")
    settled(tab, turns=2)
    for name, said in {"plain": "calm", "steered": "angry"}.items():
        assert by_emotion(standin.requests)[name]["messages"] == [
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "Two"},
        ]
    # The chart is the last reply's; the colours of all stay.
    expect(column(tab, "Left").locator(".chart")).to_have_count(1)
    expect(column(tab, "Left").locator(".token")).to_have_count(2)
    tab.get_by_role("button", name="Clear").click()
    expect(tab.locator(".turn")).to_have_count(0)
    send(tab, "Three")
    settled(tab)
    assert [len(asked["messages"]) for asked in standin.requests[-2:]] == [1, 1]


def test_a_strength_over_the_cap_is_warned_of_and_the_servers_refusal_shown(standin: StandIn, visit: Visit) -> None:
    message = "anger at strength 1.7 is over the circuit's maximum of 1.5 (1.0 is the recommended strength)"
    standin.answer = lambda asked: (400, message) if asked.get("emotion_strength", 1) > 1.5 else told(asked)
    tab = visit(standin.url)
    expect(tab.get_by_text("the cap for these emotions is 1.5.")).to_be_visible()
    weigh(tab, Strength=1.7)
    expect(tab.get_by_text("Over the cap of 1.5 for these emotions")).to_be_visible()
    send(tab, "Hello")
    expect(column(tab, "Right").get_by_role("alert")).to_have_text(message)
    expect(column(tab, "Left").locator(".meta")).to_contain_text("done")
    # What was refused is no part of the conversation.
    weigh(tab, Strength=1.5)
    send(tab, "Again")
    expect(column(tab, "Right").locator(".meta", has_text="done")).to_have_count(1)
    assert by_emotion(standin.requests)["steered"]["messages"] == [{"role": "user", "content": "Again"}]
    # Half of each emotion: the cap is that of the tightest, fear at 1.2.
    weigh(tab, anger=0.5, fear=0.5)
    expect(tab.get_by_text("the cap for these emotions is 2.4.")).to_be_visible()


ERRORS: list[tuple[Any, str]] = [
    ((500, "out of order"), "out of order"),
    ((503, {"no": "message"}), '{"no":"message"}'),
    ([text("Half", CALM), {"error": {"message": "the engine died", "code": 500}}], "the engine died"),
]


def test_errors_are_shown_where_they_happened(standin: StandIn, visit: Visit) -> None:
    tab = visit(standin.url)
    for turns, (answer, shown) in enumerate(ERRORS, 1):
        standin.answer = lambda asked, answer=answer: told(asked) if asked["emotion"] == "none" else answer
        send(tab, "Hello")
        expect(column(tab, "Right").get_by_role("alert")).to_have_count(turns)
        expect(column(tab, "Right").get_by_role("alert").last).to_contain_text(shown)
        expect(column(tab, "Right").locator(".meta", has_text="failed")).to_have_count(turns)
        expect(column(tab, "Left").locator(".meta", has_text="done")).to_have_count(turns)
        expect(column(tab, "Left").get_by_role("alert")).to_have_count(0)
        expect(tab.locator("#news")).to_contain_text(f"Steered: failed: {shown}")


def test_a_reply_that_breaks_off_is_no_reply_that_ended(standin: StandIn, visit: Visit) -> None:
    tab = visit(standin.url)
    # The stand-in always says that it is done; this drops it, as a connection that breaks does.
    broken = f"data: {json.dumps(text('Half', CALM))}\n\n"
    tab.route("**/v1/chat/completions", lambda route: route.fulfill(body=broken, content_type="text/event-stream"))
    send(tab, "Hello")
    expect(column(tab, "Left").get_by_role("alert")).to_have_text("The connection ended before the reply did.")
    expect(column(tab, "Left").locator(".tokens")).to_have_text("Half")
    tab.unroute("**/v1/chat/completions")
    tab.route("**/v1/chat/completions", lambda route: route.abort())
    send(tab, "Hello")
    expect(column(tab, "Right").get_by_role("alert").last).to_contain_text("The server cannot be reached")


def test_the_key_is_asked_for_and_kept_in_the_tab_alone(standin: StandIn, visit: Visit) -> None:
    standin.key = "s3cret"
    tab = visit(standin.url)
    dialog = tab.get_by_role("dialog", name="This server asks for a key")
    expect(dialog).to_be_visible()
    # Nothing to close it for: without a key there is nothing to see.
    tab.keyboard.press("Escape")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_label("API key")).to_be_focused()
    dialog.get_by_label("API key").fill("wrong")
    tab.keyboard.press("Enter")
    expect(dialog).to_contain_text("The key that was given is not the server's.")
    dialog.get_by_label("API key").fill("s3cret")
    tab.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    send(tab, "Hello")
    settled(tab)
    tab.get_by_text("The request to copy").click()
    for form in ("curl", "python"):
        tab.get_by_label("as", exact=True).select_option(form)
        expect(tab.locator("pre")).to_contain_text("EMOVLLM_API_KEY")
    kept = tab.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie, location.href]")
    assert kept == [["s3cret"], 0, "", f"{standin.url}/playground"]
    assert "s3cret" not in tab.content()
    tab.reload()
    expect(tab.get_by_label("Message to both columns")).to_be_visible()
    expect(visit(standin.url).get_by_role("dialog")).to_be_visible()


def test_a_key_that_is_changed_while_the_page_is_open_is_asked_for_and_nothing_is_lost(
    standin: StandIn, visit: Visit
) -> None:
    tab = visit(standin.url)
    send(tab, "One")
    settled(tab)
    standin.key = "new"
    send(tab, "Two")
    tab.get_by_role("dialog").get_by_label("API key").fill("new")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("dialog")).to_have_count(0)
    expect(tab.get_by_label("Message to both columns")).to_have_value("Two")
    tab.get_by_role("button", name="Send").click()
    settled(tab, turns=2)
    assert len(standin.requests[-1]["messages"]) == 3


def test_what_models_and_servers_write_is_text_and_never_html(standin: StandIn, visit: Visit) -> None:
    evil = "<img src=x onerror=\"document.title='ran'\"><script>document.title='ran'</script>"
    standin.emotions = [{**EMOTIONS[0], "id": evil}]
    standin.answer = lambda asked: reply((evil, CALM)) if asked["emotion"] == "none" else (400, evil)
    tab = visit(standin.url)
    send(tab, evil)
    settled_left = column(tab, "Left")
    expect(settled_left.locator(".tokens")).to_have_text(evil)
    expect(settled_left.locator(".user")).to_contain_text(evil)
    expect(column(tab, "Right").get_by_role("alert")).to_have_text(evil)
    tab.get_by_text("The request to copy").click()
    expect(tab.locator("pre")).to_contain_text("onerror")
    assert tab.locator("img:not([role]), body script").count() == 0
    assert tab.title() == "emovllm playground"


def test_the_browser_itself_forbids_to_make_html_of_a_text(standin: StandIn, browser: Any) -> None:
    tab = browser.new_page()
    tab.goto(f"{standin.url}/playground")
    attempt = """() => { try { document.body.innerHTML = "<b>x</b>" } catch (error) { return error.name } }"""
    assert tab.evaluate(attempt) == "TypeError"
    tab.close()


def test_tokens_tell_what_was_read_by_colour_pointer_and_keyboard(standin: StandIn, visit: Visit) -> None:
    pieces = [("So", CALM), (" angry", ANGRY), ("!", ANGRY)]
    standin.answer = lambda asked: reply(*pieces)
    tab = visit(standin.url)
    send(tab, "Hello")
    settled(tab)
    right = column(tab, "Right")
    tokens = right.locator(".token")
    assert [each.get_attribute("title") for each in tokens.all()][1] == "anger 80%, fear 10%, happiness 5%"
    colours = [each.evaluate("it => getComputedStyle(it).backgroundColor") for each in tokens.all()]
    assert colours[0] != colours[1] == colours[2]
    # The page tells likeliest labels in words, too: to whoever points, and to whoever goes by keyboard.
    tokens.nth(1).hover()
    expect(right.locator(".inspector")).to_have_text("angry anger 80%, fear 10%, happiness 5%")
    right.get_by_role("group", name="Steered reply").focus()
    for _ in range(2):
        tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Home")
    expect(right.get_by_role("status")).to_contain_text("neutral 70%")
    expect(right.locator(".cursor")).to_have_text("So")
    expect(right.locator("line.at")).to_have_count(1)
    legend = right.get_by_role("list", name="Mean over the reply so far").get_by_role("listitem")
    assert [" ".join(item.split()) for item in legend.all_inner_texts()] == [
        "anger 57%",
        "neutral 27%",
        "fear 10%",
        "happiness 7%",
    ]
    dashes = right.locator("polyline").evaluate_all("lines => lines.map(it => it.getAttribute('stroke-dasharray'))")
    assert len(set(dashes)) == len(LABELS)
    expect(right.get_by_role("img", name="Probabilities over 3 tokens; on average anger 57%")).to_be_visible()
    right.get_by_text("Read-out as a table").click()
    rows = right.get_by_role("row").all_inner_texts()
    assert [row.split() for row in rows[1:3]] == [["anger", "10%", "57%"], ["neutral", "70%", "27%"]]


def test_chunks_of_several_tokens_and_tokens_without_a_text_are_read_with_what_they_wrote(
    standin: StandIn, visit: Visit
) -> None:
    # Drafts make chunks of several tokens; a character of several tokens comes with the last of them.
    several = text("Two words", CALM, ANGRY)
    standin.answer = lambda asked: [several, text("", ANGRY), text("é", CALM), end([CALM, ANGRY, ANGRY, CALM])]
    tab = visit(standin.url)
    send(tab, "Hello")
    settled(tab)
    titles = [each.get_attribute("title") for each in column(tab, "Left").locator(".token").all()]
    mean = "anger 45%, neutral 38%, fear 10%"
    assert titles == [mean, mean]
    expect(column(tab, "Left").get_by_role("img", name="Probabilities over 4 tokens")).to_be_visible()


def test_a_server_that_reads_nothing_is_not_asked_to_and_one_that_reads_alone_adds_nothing(
    standin: StandIn, visit: Visit
) -> None:
    standin.reading = None
    standin.answer = lambda asked: [text("Plain"), {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    tab = visit(standin.url)
    send(tab, "Hello")
    settled(tab)
    assert not any("emotion_readout" in asked for asked in standin.requests)
    expect(tab.locator(".chart, .token")).to_have_count(0)
    expect(tab.get_by_text("Nothing is read on this server")).to_be_visible()
    standin.reading, standin.emotions = StandIn().reading, []
    standin.answer = told
    tab = visit(standin.url)
    send(tab, "Hello")
    settled(tab)
    assert not any("emotion" in asked for asked in standin.requests[-2:])
    assert standin.requests[-1]["emotion_readout"] == "tokens"
    expect(tab.get_by_label("Strength", exact=True)).to_have_count(0)
    expect(tab.locator(".chart")).to_have_count(2)


def test_a_blend_stays_in_one_circuit_and_the_list_tells_circuits_and_caps(standin: StandIn, visit: Visit) -> None:
    standin.emotions = [
        {**EMOTIONS[0], "id": f"{circuit}/anger", "circuit": circuit, "max_strength": cap}
        for circuit, cap in (("a", 1.25), ("b", 2.5))
    ]
    standin.circuits = [{**CIRCUIT, "id": name, "scope": "generation", "emotions": ["anger"]} for name in ("a", "b")]
    tab = visit(standin.url)
    tab.get_by_role("group", name="Circuit b").get_by_label("anger, as a number").fill("0.5")
    tab.get_by_label("Strength", exact=True).focus()
    send(tab, "Hello")
    settled(tab)
    assert by_emotion(standin.requests)["steered"]["emotion"] == {"b/anger": 0.5}
    tab.get_by_text("Circuits and caps").click()
    rows = tab.locator("aside").get_by_role("row").all_inner_texts()
    assert [row.split() for row in rows if "/" in row] == [["a/anger", "1.25"], ["b/anger", "2.5"]]


def as_a_shell_does(command: str) -> str:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60).stdout


def as_python_does(code: str) -> str:
    """What the server's refusal says."""
    with pytest.raises(openai.APIStatusError) as refused:
        exec(code, {})
    return str(refused.value)


def test_the_request_that_is_copied_is_the_one_that_was_sent(standin: StandIn, visit: Visit) -> None:
    tab = visit(standin.url, permissions=["clipboard-read", "clipboard-write"])
    tab.get_by_label("System prompt").fill('It\'s "quoted" \\ $HOME `x`\né €')
    weigh(tab, fear=0.5, Strength=0.9)
    tab.get_by_label("Schedule").select_option("fade")
    send(tab, "What's that?")
    settled(tab)
    sent = {name: {**asked} for name, asked in by_emotion(standin.requests).items()}
    assert all(asked.pop("stream") for asked in sent.values())
    standin.answer = lambda asked: (418, "seen")
    tab.get_by_text("The request to copy").click()
    for side, name in ((0, "plain"), (1, "steered")):
        for form, run in (("curl", as_a_shell_does), ("python", as_python_does)):
            tab.get_by_label("Of the column").select_option(str(side))
            tab.get_by_label("as", exact=True).select_option(form)
            tab.get_by_role("button", name="Copy").click()
            expect(tab.get_by_role("button", name="Copy")).to_have_text("Copied")
            copied = tab.evaluate("navigator.clipboard.readText()")
            assert "seen" in run(copied)
            assert standin.requests[-1] == sent[name], copied
    tab.get_by_label("as", exact=True).select_option("model")
    expect(tab.get_by_text("No name says these emotions")).to_be_visible()
    weigh(tab, fear=1)
    expect(tab.locator("pre")).to_have_text("some-model:anger+fear")
    expect(tab.get_by_text("emotion_strength 1.8 would belong")).to_be_visible()


def test_everything_can_be_done_by_keyboard_alone(standin: StandIn, visit: Visit) -> None:
    tab = visit(standin.url)
    expect(tab.get_by_label("Message to both columns")).to_be_visible()
    tab.keyboard.press("Tab")
    expect(tab.get_by_text("Skip to the message")).to_be_focused()
    tab.keyboard.press("Enter")
    tab.keyboard.type("Hello")
    tab.keyboard.press("Shift+Enter")
    tab.keyboard.type("there")
    tab.keyboard.press("Enter")
    settled(tab)
    assert standin.requests[0]["messages"] == [{"role": "user", "content": "Hello\nthere"}]
    # From the message on, and around: every control comes once, each with an outline that is seen.
    tab.keyboard.press("Escape")
    tab.evaluate("document.activeElement.blur()")
    wanted = tab.evaluate("""[...document.querySelectorAll("a, button, input, select, textarea, summary, [tabindex]")]
        .filter(it => !it.disabled && it.checkVisibility()).length""")
    assert wanted > 20
    seen: set[int] = set()
    while len(seen) < wanted:
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement === document.body"):
            continue  # the browser's own controls come between the last and the first
        at, outline = tab.evaluate("""() => { const it = document.activeElement, style = getComputedStyle(it);
            return [[...document.querySelectorAll("*")].indexOf(it), style.outlineStyle + style.outlineWidth] }""")
        assert at not in seen
        seen.add(at)
        assert outline == "solid2px", tab.evaluate("document.activeElement.outerHTML")[:200]


def test_replies_are_told_to_who_listens_when_they_end(standin: StandIn, visit: Visit) -> None:
    more = threading.Event()
    standin.answer = lambda asked: [text("Bit", CALM), more, text(" by bit", CALM), end([CALM] * 2)]
    tab = visit(standin.url)
    news = tab.locator("#news")
    expect(news).to_have_attribute("role", "status")
    send(tab, "Hello")
    expect(column(tab, "Left").locator(".tokens")).to_have_text("Bit")
    expect(news).to_have_text("Both columns are being written.")
    more.set()
    expect(news).to_have_text("Plain: Bit by bit Steered: Bit by bit")


def test_every_control_has_a_name_and_every_id_is_one_elements(standin: StandIn, visit: Visit) -> None:
    tab = visit(standin.url)
    send(tab, "Hello")
    settled(tab)
    for summary in tab.locator("summary").all():
        summary.click()
    nameless, twice, controls = tab.evaluate("""() => {
        const all = [...document.querySelectorAll("input, select, textarea, button, [tabindex], [role=img]")];
        const name = it => it.getAttribute("aria-label")
            || [...(it.labels ?? [])].map(label => label.textContent).join("")
            || it.tagName === "BUTTON" && it.textContent.trim();
        const ids = [...document.querySelectorAll("[id]")].map(it => it.id);
        const refs = [...document.querySelectorAll("[aria-describedby], [aria-labelledby], [aria-controls]")]
            .flatMap(it => ["aria-describedby", "aria-labelledby", "aria-controls"].map(name => it.getAttribute(name)))
            .filter(Boolean).filter(id => !document.getElementById(id));
        return [all.filter(it => !name(it)).map(it => it.outerHTML.slice(0, 150)),
            [...ids.filter((id, at) => ids.indexOf(id) !== at), ...refs], all.length];
    }""")
    assert (nameless, twice) == ([], [])
    assert controls > 25


# The ratio of luminances of every text and what is behind it, the lowest with its text; WCAG 2.1.
CONTRAST = """() => {
    const parse = text => {
        const [r, g, b, a = 1] = (text.match(/-?[\\d.]+(?:e-?\\d+)?/g) ?? [0, 0, 0, 0]).map(Number);
        return text.startsWith("color(") ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
    };
    const over = ([r, g, b, a], back) => [r, g, b].map((part, at) => part * a + back[at] * (1 - a));
    const behind = it => {
        const back = it.parentElement ? behind(it.parentElement) : [255, 255, 255];
        return over(parse(getComputedStyle(it).backgroundColor), back);
    };
    const light = rgb => rgb.map(part => part / 255)
        .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
    const found = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const it = walk.currentNode.parentElement;
        if (!walk.currentNode.data.trim() || !it.checkVisibility()) continue;
        if (it.closest(":disabled, script, .unseen")) continue;
        const back = behind(it), text = over(parse(getComputedStyle(it).color), back);
        const [low, high] = [light(back), light(text)].sort((a, b) => a - b);
        found.push([(high + 0.05) / (low + 0.05), walk.currentNode.data.slice(0, 40)]);
    }
    return found.sort((a, b) => a[0] - b[0]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(standin: StandIn, visit: Visit, scheme: str) -> None:
    # Tokens in all colours, of labels that have one and of those that take the rest, at their deepest.
    labels = ["anger", "sadness", "joy", "fear", "surprise", "disgust", "love", "neutral", "pride", "awe"]
    sure = [[float(label == at) for label in range(len(labels))] for at in range(len(labels))]
    assert standin.reading is not None
    standin.reading["labels"] = labels
    pieces = [text(f" {name}", reading) for name, reading in zip(labels, sure, strict=True)]
    standin.answer = lambda asked: (400, "refused") if asked["emotion"] == "none" else [*pieces, threading.Event()]
    tab = visit(standin.url, color_scheme=scheme)
    weigh(tab, Strength=9)
    send(tab, "Hello")
    expect(column(tab, "Right").locator(".token")).to_have_count(len(labels))
    expect(column(tab, "Left").get_by_role("alert")).to_be_visible()
    for summary in tab.locator("summary").all():
        summary.click()
    ratios = tab.evaluate(CONTRAST)
    assert len(ratios) > 40
    assert [pair for pair in ratios if pair[0] < 4.5] == []
    background = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (int(re.findall(r"\d+", background)[0]) < 128) == (scheme == "dark")


@pytest.mark.parametrize("width", [320, 390])
def test_on_a_narrow_screen_columns_stack_and_nothing_is_cut_off(standin: StandIn, visit: Visit, width: int) -> None:
    standin.answer = lambda asked: reply(("a" * 200, CALM), (" reply", CALM))
    tab = visit(standin.url, viewport={"width": width, "height": 700}, has_touch=True)
    expect(tab.get_by_label("Strength", exact=True)).to_be_hidden()
    tab.get_by_role("button", name="Settings").click()
    expect(tab.get_by_label("Strength", exact=True)).to_be_visible()
    expect(tab.get_by_role("button", name="Settings")).to_have_attribute("aria-expanded", "true")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.get_by_role("button", name="Settings").click()
    send(tab, "Hello " * 30)
    settled(tab)
    left, right = (column(tab, side).bounding_box() for side in ("Left", "Right"))
    assert left["y"] + left["height"] <= right["y"]
    assert (left["x"], left["width"]) == (right["x"], right["width"])
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    wide = visit(standin.url, viewport={"width": 1440, "height": 900})
    left, right = (column(wide, side).bounding_box() for side in ("Left", "Right"))
    assert left["x"] + left["width"] <= right["x"]
    assert left["y"] == right["y"]


def test_nothing_moves_for_who_asked_for_less_motion(standin: StandIn, visit: Visit) -> None:
    standin.answer = lambda asked: [text("Begun", CALM), threading.Event()]
    for motion, animation in (("no-preference", "blink"), ("reduce", "none")):
        tab = visit(standin.url, reduced_motion=motion)
        send(tab, "Hello")
        caret = tab.locator(".caret").first
        expect(caret).to_be_visible()
        assert caret.evaluate("it => getComputedStyle(it).animationName") == animation
