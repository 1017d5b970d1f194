"""What a model obeys, and what it then learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from emovllm_offline.building.obeyed import HELD_OUT, Obedience, asks, best, obedience, own_replies, scenario, to_learn
from emovllm_offline.building.parts import EVERY, LEAST, load_parts, messages, write_lines
from emovllm_offline.data.examples import Example, load_examples
from emovllm_offline.data.messages import load_messages, overlaps_test_set
from emovllm_offline.data.sev import Item, Valence, expand
from emovllm_offline.data.styles import load_style
from emovllm_offline.discovery.survival import Reply
from emovllm_offline.intervals import wilson

EMOTIONS = ("anger", "fear")


def reply(
    item: str, emotion: str, match: int | None, text: str = "So.", reason: str = "stop", style: str = "a"
) -> Reply:
    return Reply(
        item=item,
        emotion=emotion,
        style=style,
        frame=0,
        prompt="0" * 64,
        reply=text,
        finish_reason=reason,
        judge="lexicon",
        match=match,  # type: ignore[arg-type]
        label=None,
        reason="",
    )


def obeying(style: str, anger: int, fear: int, count: int = 12) -> Obedience:
    return Obedience(style, {"anger": wilson(anger, count), "fear": wilson(fear, count)})


def test_an_emotion_is_obeyed_in_half_of_the_replies_and_beyond_chance() -> None:
    assert obeying("a", 12, 5).obeyed == ["anger"]
    assert obeying("a", 12, 10).wholly
    # Six of twelve are half, and may still be chance among two emotions and none.
    assert obeying("a", 6, 6).obeyed == []
    assert obeying("a", 30, 30, count=60).wholly


def test_the_style_with_most_emotions_obeyed_is_taken_and_then_the_larger_share() -> None:
    assert best([]) is None
    one, both, more = obeying("one", 12, 0), obeying("both", 10, 10), obeying("more", 12, 11)
    assert best([one, both]) is both
    assert best([both, more, one]) is more
    assert best([both, obeying("same", 10, 10)]) is both


def test_replies_that_the_style_holds_itself_and_those_without_a_verdict_show_nothing() -> None:
    replies = [
        reply("s.positive", "anger", 1),
        reply("s.neutral", "anger", 0),
        reply("s.positive", "fear", 1, reason="given"),
        reply("s.neutral", "fear", None),
        reply("s.neutral", "fear", 1, style="b"),
    ]
    found = obedience("a", replies, EMOTIONS)
    anger = found.shares["anger"]
    assert anger is not None
    assert (anger.value, anger.count) == (0.5, 2)
    assert found.shares["fear"] is None
    assert found.mean == 0.25


@pytest.mark.parametrize(("name", "asking"), [("paper", True), ("fewshot", True), ("replies", False)])
def test_styles_ask_unless_all_that_they_have_is_replies(name: str, asking: bool) -> None:
    assert asks(load_style(name)) is asking


EVENTS: tuple[Valence, ...] = ("positive", "neutral")
ITEMS = [Item(f"s{i}.{event}", "t", event, f"message {i} {event}") for i in range(8) for event in EVENTS]
WRITTEN = [
    Example(id=f"s{i}.positive", user=f"message {i} positive", replies={name: f"written {name}" for name in EMOTIONS})
    for i in range(8)
] + [
    Example(id=f"h{i}.positive", user=f"other {i}", replies={name: f"held {name}" for name in EMOTIONS}, held_out=True)
    for i in range(4)
]


def own(emotions: Sequence[str]) -> dict[str, dict[str, str]]:
    return own_replies(
        [reply(item.id, name, 1, f"own words of {name} here") for item in ITEMS for name in emotions], ITEMS
    )


def test_own_replies_ended_were_accepted_and_do_not_repeat_themselves() -> None:
    replies = [
        reply("s0.positive", "anger", 0, "no"),
        reply("s0.positive", "anger", 1, "cut", reason="length"),
        reply("s0.positive", "anger", 1, "Too short to say."),
        reply("s0.positive", "anger", 1, "I am so mad, and I am so mad."),
        reply("s0.positive", "anger", 1, "The first that says something."),
        reply("s0.positive", "anger", 1, "The second that says something."),
        reply("elsewhere", "fear", 1),
    ]
    assert own_replies(replies, ITEMS) == {"message 0 positive": {"anger": "The first that says something."}}


def test_a_model_that_obeys_nowhere_learns_from_written_replies_and_is_measured_by_those_held_out() -> None:
    rows = to_learn(WRITTEN, own(EMOTIONS), ITEMS, EMOTIONS, [], 5, 2)
    assert [row.id for row in rows if not row.held_out] == [f"s{i}.positive" for i in range(5)]
    assert [row.id for row in rows if row.held_out] == ["h0.positive", "h1.positive"]
    assert all(text.startswith(("written", "held")) for row in rows for text in row.replies.values())


def test_where_it_obeys_its_own_replies_take_the_place_of_written_ones() -> None:
    rows = to_learn(WRITTEN, own(["fear"]), ITEMS, EMOTIONS, ["fear"], 100, 2)
    # Of the neutral events nothing is written in anger.
    assert [row.id for row in rows] == [f"s{i}.positive" for i in range(8)]
    assert all(row.replies == {"anger": "written anger", "fear": "own words of fear here"} for row in rows)


def test_where_it_obeys_in_all_every_message_that_it_was_asked_counts_and_whole_scenarios_are_held_out() -> None:
    rows = to_learn([], own(EMOTIONS), ITEMS, EMOTIONS, EMOTIONS, 100, 2)
    assert [row.user for row in rows] == [item.user for item in ITEMS]
    apart = {scenario(row.id) for row in rows if row.held_out}
    assert apart == {f"s{i}" for i in range(0, 8, HELD_OUT)}
    assert all(row.held_out == (scenario(row.id) in apart) for row in rows)
    assert to_learn([], {}, ITEMS, EMOTIONS, EMOTIONS, 100, 2) == []


def test_the_packaged_replies_serve_the_six_emotions() -> None:
    rows = to_learn(load_examples(), {}, [], ("anger", "disgust"), [], 80, 13)
    assert (len(rows), sum(row.held_out for row in rows)) == (93, 13)


def test_no_scenario_is_in_two_parts_and_the_test_set_chooses_nothing(tmp_path: Path) -> None:
    parts = load_parts(None)
    names = [{record.skeleton_id for record in part} for part in (parts.learn, parts.choose, parts.test)]
    assert len(set.union(*names)) == sum(map(len, names)) == 320
    assert not overlaps_test_set(messages(parts.choose, 40))
    assert overlaps_test_set(messages(parts.test, 1))
    lines = [record.model_dump_json() for record in parts.test[:LEAST]]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines))
    mine = load_parts(str(path))
    assert [len(part) for part in (mine.learn, mine.choose, mine.test)] == [9, 3, 3]
    assert LEAST % EVERY == 0
    assert mine.own


def test_messages_are_one_of_each_scenario_with_the_valences_in_turn() -> None:
    parts = load_parts(None)
    found = messages(parts.choose, 6)
    assert [one.valence for one in found] == ["positive", "neutral", "negative"] * 2
    users = [item.user for item in expand(parts.choose)]
    assert [users.index(one.user) // 3 for one in found] == list(range(6))


def test_messages_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = messages(load_parts(None).choose, 4)
    path = tmp_path / "below" / "messages.jsonl"
    write_lines(path, map(asdict, found))
    assert load_messages(path) == found
