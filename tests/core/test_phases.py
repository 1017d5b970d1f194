"""What part of a reply a token belongs to, against a plain search in the reply's text."""

from __future__ import annotations

import numpy as np
import pytest

from emovllm.phases import BITS, Automaton, Markers

THINKING, TOOLS = BITS["thinking"], BITS["tools"]
MARKERS = {
    "thinking": Markers(("<think>",), ("</think>",)),
    "tools": Markers(("<tool_call>", "[CALLS]"), ("</tool_call>",)),
}
# Every character, and pieces that cut markers anywhere, or hold one and more.
CHARACTERS = sorted(set("<think></think><tool_call>[CALLS] \nxy{}"))
PIECES = [
    *CHARACTERS,
    "<think>",
    "</th",
    "ink>",
    "ink>\n\n",
    "<tool_call>",
    " <",
    "<to",
    "ol_",
    "call>{",
    "}</tool_call>",
]
PIECES += ["[CAL", "LS]", "LS]x", "x</", "  ", "x<think>y</think>", "hello", "tool_call", "think"]
AUTOMATON = Automaton(PIECES, MARKERS)


def spared(text: str, within: int = 0) -> int:
    """The bits of the token that comes after a text."""
    opening, place, begun = True, 0, ""
    ends = {"</think>": THINKING, "</tool_call>": TOOLS}
    begins = {"<think>": THINKING, "<tool_call>": TOOLS, "[CALLS]": TOOLS}
    while place < len(text):
        found = next((marker for marker in (*ends, *begins) if text.startswith(marker, place)), None)
        if found is None:
            rest = text[place:]
            begun = rest if any(marker.startswith(rest) for marker in (*ends, *begins)) else ""
            if begun:
                break
            opening = opening and text[place].isspace()
            place += 1
            continue
        if found in ends:
            within &= ~ends[found]
            opening = True
        else:
            within = within or begins[found]
            opening = False
        place += len(found)
    calling = bool(begun) and any(marker.startswith(begun) for marker in ("<tool_call>", "[CALLS]"))
    return within | (TOOLS if opening or calling else 0)


def states_of(tokens: list[int], within: int = 0) -> list[int]:
    state = AUTOMATON.start(within)
    return [int(AUTOMATON.spared[state]) for state in [state, *AUTOMATON.advance(state, tokens)]]


@pytest.mark.parametrize("within", [0, THINKING])
def test_every_way_to_cut_a_reply_into_tokens_gives_the_same(within: int) -> None:
    random = np.random.default_rng(0)
    texts = [
        "<think>x</think>\n\n<tool_call>{}</tool_call> y",
        "x <tool_call>{y}</tool_call>\n<tool_call>{}",
        "[CALLS]{}",
    ]
    for text in texts * 20:
        tokens, place = [], 0
        while place < len(text):
            fitting = [number for number, piece in enumerate(PIECES) if piece and text.startswith(piece, place)]
            tokens.append(int(random.choice(fitting)))
            place += len(PIECES[tokens[-1]])
        for count, bits in enumerate(states_of(tokens, within)):
            written = "".join(PIECES[token] for token in tokens[:count])
            assert bits == spared(written, within), (written, count)


def test_random_replies() -> None:
    random = np.random.default_rng(1)
    for _ in range(300):
        tokens = random.integers(0, len(PIECES), 12).tolist()
        for count, bits in enumerate(states_of(tokens)):
            assert bits == spared("".join(PIECES[token] for token in tokens[:count]))


def test_without_markers_of_calls_none_is_expected() -> None:
    thinking = Automaton(PIECES, {"thinking": MARKERS["thinking"]})
    assert thinking.spared[thinking.start(0)] == 0
    assert thinking.spared[thinking.start(THINKING)] == THINKING


def test_tokens_that_do_alike_share_a_column() -> None:
    many = Automaton([*PIECES, *(f"word{number}" for number in range(1000))], MARKERS)
    assert many.table.shape == AUTOMATON.table.shape


def test_the_tokens_of_a_reply_that_are_spared_are_counted() -> None:
    tokens = [PIECES.index(piece) for piece in ("x", "</th", "ink>", "hello", "<tool_call>", "x", "y")]
    # Thinking up to its end marker; what may be a call after it; the call.
    assert AUTOMATON.count(THINKING, THINKING, tokens) == 3
    assert AUTOMATON.count(THINKING, TOOLS, tokens) == 1 + 1 + 2
    assert AUTOMATON.count(THINKING, THINKING | TOOLS, tokens) == 3 + 1 + 2
    assert AUTOMATON.count(0, TOOLS, []) == 0


def test_an_empty_marker_is_refused() -> None:
    with pytest.raises(ValueError, match="a marker is empty"):
        Automaton(PIECES, {"tools": Markers(("",))})
