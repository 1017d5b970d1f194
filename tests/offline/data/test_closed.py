"""The closed test set: balanced, even-tempered, of messages that nothing else is made of, and opened once a release."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import pytest

import emovllm
from emovllm.circuit_files import load_circuit
from emovllm.models import NAME, shipped_circuits
from emovllm_offline.data.examples import load_examples
from emovllm_offline.data.messages import CLOSED, Message, load_closed, load_messages
from emovllm_offline.data.sev import emotion_words, expand, load_sev, words

KINDS = {"told", "question", "request", "chat", "work", "plan", "review"}
EACH = 12
# Words in a row that two texts have in common only where one is made of the other.
RUN = 5


def runs(texts: Iterable[str]) -> set[tuple[str, ...]]:
    found = set()
    for text in texts:
        of_text = words(text)
        found |= {tuple(of_text[at : at + RUN]) for at in range(len(of_text) - RUN + 1)}
    return found


def kind(message: Message) -> str:
    return message.id.partition("-")[0]


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    return load_messages(CLOSED)


def test_kinds_and_valences_are_balanced_in_every_part(messages: list[Message]) -> None:
    assert Counter(map(kind, messages)) == dict.fromkeys(KINDS, EACH)
    assert Counter((kind(one), one.valence) for one in messages) == {
        (name, valence): EACH // 3 for name in KINDS for valence in ("positive", "neutral", "negative")
    }
    for start in range(0, len(messages), 3 * len(KINDS)):
        part = messages[start : start + 3 * len(KINDS)]
        assert set(Counter((kind(one), one.valence) for one in part).values()) == {1}
    # Each is evidence of its own.
    assert {one.group for one in messages} == {""}
    assert load_messages(CLOSED, 10) == messages[:10]


def test_no_message_names_an_emotion_or_comes_twice(messages: list[Message]) -> None:
    assert len({one.user for one in messages}) == len({one.id for one in messages}) == len(messages)
    for one in messages:
        assert one.user.isascii()
        assert not set(words(one.user)) & emotion_words(), one.id


def test_nothing_that_is_learnt_from_or_chosen_by_has_a_part_of_it(messages: list[Message]) -> None:
    learnt = [example.user for example in load_examples()]
    learnt += [reply for example in load_examples() for reply in example.replies.values()]
    asked = [item.user for name in ("sev", "sev-test") for item in expand(load_sev(name))]
    assert not runs([*learnt, *asked]) & runs(one.user for one in messages)


def test_a_release_opens_it_once() -> None:
    releases = [opening.release for opening in load_closed().opened]
    assert len(set(releases)) == len(releases)
    for opening in load_closed().opened:
        assert re.fullmatch(r"20\d\d-[01]\d-[0-3]\d", opening.date)
        assert re.fullmatch("[0-9a-f]{64}", opening.circuit)
        assert opening.command.startswith("emovllm ")
        assert f"--data {CLOSED}" in opening.command


def test_this_release_opened_it_for_the_circuit_that_is_shipped() -> None:
    (opening,) = (one for one in load_closed().opened if one.release == emovllm.__version__)
    assert opening.circuit == load_circuit(shipped_circuits() / NAME).digest()
