"""What part of a reply a token belongs to: thinking, a tool call, or the answer; by the markers between them.

vLLM's parsers find thinking and calls in a reply's text once it is there. To spare them while they are written, what a
token does must depend on the tokens before it alone: so the markers become an automaton over tokens, two tables that a
worker looks up on the device. A marker may be several tokens, and be cut into tokens in any way.

Needs neither torch nor vLLM.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

# What can be spared, and its bit.
Phase = Literal["thinking", "tools"]
PHASES: tuple[Phase, ...] = get_args(Phase)
BITS: dict[Phase, int] = {"thinking": 1, "tools": 2}
_ALL = sum(BITS.values())
_TOOLS = BITS["tools"]


class Markers(NamedTuple):
    """The texts that begin a phase and those that end it, as a reply holds them. One without an end lasts."""

    begins: tuple[str, ...]
    ends: tuple[str, ...] = ()


class Automaton:
    """Over a vocabulary. A state is a number; `advance` goes from one to the next by a token.

    classes: int32 [vocabulary], each token's class: tokens that do the same in every state have one.
    table: int32 [states, classes], the state after a token.
    spared: uint8 [states], the bits of the phases (`BITS`) that the token after that state belongs to. Where a tool
        call may begin next (the reply's first token, and what follows thinking or a call, white space between) it may
        be part of the call, and counts as one: whether there is a call is for the plain model to say.
    """

    def __init__(self, pieces: Sequence[str], markers: Mapping[Phase, Markers]) -> None:
        """pieces: each token's text, by its number; special tokens' too."""
        self._texts: dict[str, tuple[int, int]] = {}
        for phase, of_phase in markers.items():
            for text in of_phase.begins:
                self._add(text, BITS[phase], 0)
            for text in of_phase.ends:
                self._add(text, 0, BITS[phase])
        self._calls = bool(markers.get("tools"))
        self._prefixes = ["", *sorted({text[:end] for text in self._texts for end in range(1, len(text) + 1)})]
        self._numbers = {prefix: number for number, prefix in enumerate(self._prefixes)}
        self.spared = np.array([self._spared(state) for state in range(self.states)], np.uint8)
        self.classes, self.table = self._classified(pieces)

    def _add(self, text: str, begins: int, ends: int) -> None:
        if not text:
            raise ValueError("a marker is empty")
        before = self._texts.get(text, (0, 0))
        self._texts[text] = before[0] | begins, before[1] | ends

    @property
    def states(self) -> int:
        """How many there are."""
        return len(self._prefixes) * (_ALL + 1) * 2

    def start(self, within: int) -> int:
        """The state at the end of a prompt. within: the bits of the phases that it leaves open."""
        return self._state(0, within, True)

    def advance(self, state: int, tokens: Iterable[int]) -> list[int]:
        """The state after each of these tokens."""
        states = []
        for token in tokens:
            # Of vocabularies that were padded, the tokenizer does not know the last tokens.
            state = int(self.table[state, self.classes[token] if token < len(self.classes) else 0])
            states.append(state)
        return states

    def count(self, within: int, muted: int, tokens: Sequence[int]) -> int:
        """How many of a reply's tokens belong to a phase that is spared, by the bits of `within` and `muted`."""
        start = self.start(within)
        states = [start, *self.advance(start, tokens[:-1])] if tokens else []
        return int(np.count_nonzero(self.spared[states] & muted)) if states else 0

    def _state(self, prefix: int, within: int, opening: bool) -> int:
        return (prefix * (_ALL + 1) + within) * 2 + opening

    def _parts(self, state: int) -> tuple[int, int, bool]:
        return state // 2 // (_ALL + 1), state // 2 % (_ALL + 1), bool(state % 2)

    def _spared(self, state: int) -> int:
        prefix, within, opening = self._parts(state)
        begun = self._prefixes[prefix]
        call = any(begins & _TOOLS and begun and text.startswith(begun) for text, (begins, _) in self._texts.items())
        return within | (_TOOLS if call or (opening and self._calls) else 0)

    def _after(self, state: int, character: str) -> int:
        """The state after a character."""
        prefix, within, opening = self._parts(state)
        begun = text = self._prefixes[prefix] + character
        while begun not in self._numbers:
            begun = begun[1:]
        # What turned out to be in no marker.
        opening = opening and not text.removesuffix(begun).strip()
        if (marker := self._texts.get(begun)) is not None:
            begins, ends = marker
            opening = bool(ends)
            # Phases do not nest: of a call that is written down while the model thinks, vLLM knows nothing.
            within = within & ~ends or begins
            begun = ""
        return self._state(self._numbers[begun], within, opening)

    def _classified(self, pieces: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """`classes` and `table`."""
        columns: dict[bytes, int] = {}
        known: dict[str, int] = {}
        # The state after each character, from each state; all that are in no marker do the same, but for white space.
        steps: dict[str, np.ndarray] = {}
        spelt = set("".join(self._texts))

        def step(character: str) -> np.ndarray:
            alike = character if character in spelt else " " if character.isspace() else "\0"
            if alike not in steps:
                steps[alike] = np.array([self._after(state, alike) for state in range(self.states)], np.int32)
            return steps[alike]

        def number(text: str) -> int:
            if text not in known:
                column = np.arange(self.states, dtype=np.int32)
                for character in text:
                    column = step(character)[column]
                known[text] = columns.setdefault(column.tobytes(), len(columns))
            return known[text]

        # The class of what the tokenizer does not know, and of most tokens: they only end what had begun.
        other, blank = number("\0"), number(" ")
        touches = _touching(list(self._texts))

        def classified(piece: str) -> int:
            if touches(piece):
                return number(piece)
            return blank if not piece or piece.isspace() else other

        classes = np.array([classified(piece) for piece in pieces], np.int32)
        table = np.array([np.frombuffer(column, np.int32) for column in columns], np.int32).T.copy()
        return classes, table


def _touching(texts: Sequence[str]) -> Callable[[str], object]:
    """Tells whether a piece of text may be part of a marker: within it, over its beginning or its end, or around it."""
    within = {text[start:end] for text in texts for start in range(len(text)) for end in range(start, len(text) + 1)}
    begins = "|".join(re.escape(text[:end]) for text in texts for end in range(1, len(text) + 1))
    ends = "|".join(re.escape(text[start:]) for text in texts for start in range(len(text)))
    around = re.compile(f"{'|'.join(map(re.escape, texts))}|\\A(?:{ends})|(?:{begins})\\Z")
    return lambda piece: piece in within or around.search(piece)
