"""How strong a request's emotion is at a token, where that depends on what was written before it (`emovllm.phases`) or
read (`emovllm.emotion.Target`).

A token's gain depends on the request's tokens up to it, and on what was read at least `span` tokens before it, `span`
being as many as a forward may verify of a request. So it is the same in chunks, after a preemption and with drafts,
whichever are accepted. With asynchronous scheduling, the device alone knows the last token: what a gain goes by is kept
there, and the buffer of coefficients is multiplied there, with no synchronisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from emovllm.emotion import Wire
from emovllm.engine.arrays import Array, Arrays, Rings, Shape
from emovllm.engine.calming import Calm, Calming
from emovllm.engine.forward import Forward, Tokens
from emovllm.phases import Automaton

# Beyond any position.
FAR = np.iinfo(np.int64).max


class Inputs(NamedTuple):
    """What the next forward computes, on the device: each token's number and its position in its request, int
    [tokens]."""

    tokens: Tensor
    positions: Tensor


@dataclass(frozen=True, slots=True)
class Reads:
    """What targets go by. labels: of the probe. tokens: the longest reply."""

    labels: int
    tokens: int


class _Known(NamedTuple):
    """Of the positions from `first` on whose tokens were known when the request came: the gains, float32 [n], and
    which guards calm it, bool [n, guards]."""

    first: int
    gains: np.ndarray
    calmed: np.ndarray


class Gains:
    """Of requests, by slot.

    span: as of `Shape`. arrays: what is worked on; by default as suits the device.
    """

    def __init__(
        self,
        slots: int,
        device: torch.device,
        span: int = 1,
        automaton: Automaton | None = None,
        reads: Reads | None = None,
        arrays: Arrays | None = None,
    ) -> None:
        self._shape = shape = Shape(slots, span, reads.tokens if reads is not None else 0)
        self._automaton, self._reading = automaton, reads
        self._arrays = arrays = arrays or Arrays(device)
        self._calming: Calming | None = None
        if automaton is not None:
            self._states = Rings(arrays, slots, shape.ring, "int64")
            self._muted = arrays.zeros((slots,), "uint8")
            # By token plus one: of padding, and of what a padded vocabulary has more, the class is the first.
            self._classes = arrays.moved(np.pad(automaton.classes.astype(np.int64), 1))
            self._table = arrays.moved(automaton.table.astype(np.int64))
            self._spared = arrays.moved(automaton.spared)
        if reads is not None:
            self._gains = Rings(arrays, slots, shape.ring)
            self._first = arrays.zeros((slots,), "int64")
            # A target's level, rate and cap; 1, 0 and 1 for none, whose gain stays.
            self._targets = arrays.zeros((slots, 3))
            self._labels = arrays.zeros((slots, reads.labels))
            self._read = arrays.zeros((slots * reads.tokens,))
        self._known: dict[int, _Known] = {}
        # By slot: the position from which on the device alone knows a request's gains; what its gains go by.
        self.until = np.full(slots, FAR)
        self._spares = np.zeros(slots, bool)
        self._targeted = np.zeros(slots, bool)
        self._noted: Tokens | None = None

    def guard(self, calms: Sequence[Calm], columns: int) -> None:
        """Has guards calm every request, before the first one comes. columns: of the coefficients."""
        assert self._reading is not None
        self._calming = Calming(calms, columns, self._arrays, self._shape)

    @property
    def guarded(self) -> bool:
        """Whether guards calm."""
        return self._calming is not None

    @property
    def nbytes(self) -> int:
        """On the device."""
        rings = [getattr(self, name).values for name in ("_states", "_gains") if hasattr(self, name)]
        names = ("_muted", "_classes", "_table", "_spared", "_first", "_targets", "_labels", "_read")
        kept = [*rings, *(getattr(self, name) for name in names if hasattr(self, name))]
        return sum(array.nbytes for array in (*kept, *(self._calming.arrays if self._calming is not None else ())))

    def join(self, slot: int, wire: Wire, prompt_len: int, replied: Sequence[int]) -> None:
        """Takes a request up, or again after a preemption, with the tokens of its reply so far.

        Raises: RuntimeError where the engine does not know phases or reads nothing, and the request needs it.
        """
        if (wire.muted and self._automaton is None) or (wire.target is not None and self._reading is None):
            raise RuntimeError("this engine does not know what the gain of this emotion goes by")
        first = prompt_len - 1
        live = np.ones(len(replied) + 1, bool)
        if self._automaton is not None and wire.muted:
            start = self._automaton.start(wire.within)
            states = np.array([start, *self._automaton.advance(start, replied)])
            live = (self._automaton.spared[states] & wire.muted) == 0
            self._states.put(slot, states, first)
        if self._automaton is not None:
            self._muted[slot] = wire.muted
        self._spares[slot], self._targeted[slot] = bool(wire.muted), wire.target is not None
        gains = np.ones(len(replied) + 1, np.float32)
        if wire.target is not None:
            gains = wire.target.gains(self._read_of(slot, len(replied)), live, self._shape.span)
            self._labels[slot] = 0
            self._labels[slot, list(wire.target.labels)] = 1
        if self._reading is not None:
            level, rate, cap = wire.target[:2] + wire.target[3:] if wire.target is not None else (1.0, 0.0, 1.0)
            self._targets[slot] = self._arrays.moved(np.array([level, rate, cap], np.float32))
            self._first[slot] = first
            # Of a request without a target 1 for good, as its place is only kept up beside those that have one.
            self._gains.put(slot, gains if wire.target is not None else np.ones(self._shape.ring, np.float32), first)
        calmed = np.zeros((len(gains), 0), bool)
        if self._calming is not None:
            calmed = self._calming.join(slot, first, len(replied))
        self._known[slot] = _Known(first, gains * live * ~calmed.any(1), calmed)
        self.until[slot] = prompt_len + len(replied)

    def _read_of(self, slot: int, tokens: int) -> np.ndarray:
        begin = slot * self._shape.tokens
        return self._arrays.fetched(self._read[begin : begin + tokens])

    def leave(self, slot: int) -> None:
        """Forgets the request in a slot, if there is one."""
        self._known.pop(slot, None)
        self.until[slot], self._spares[slot], self._targeted[slot] = FAR, False, False

    def grow(self) -> None:
        """Twice the slots."""
        self.until = np.concatenate([self.until, np.full_like(self.until, FAR)])
        for name in ("_spares", "_targeted"):
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros_like(getattr(self, name))]))
        for name in ("_states", "_gains", "_calming"):
            if (kept := getattr(self, name, None)) is not None:
                kept.grow()
        for name in ("_muted", "_first", "_targets", "_labels", "_read"):
            if (old := getattr(self, name, None)) is not None:
                setattr(self, name, self._arrays.grown(old))

    def known(self, slot: int, positions: np.ndarray) -> np.ndarray:
        """The gains at positions before `until`, 1 before the reply: int [n] to float32 [n]."""
        first, gains, _ = self._known[slot]
        return np.where(positions < first, np.float32(1), gains[np.maximum(positions - first, 0)])

    def calmed(self, slot: int, positions: np.ndarray) -> np.ndarray:
        """What guards add at positions before `until`: int [n] to float32 [n, columns]."""
        known = self._known[slot]
        assert self._calming is not None
        calmed = known.calmed[np.maximum(positions - known.first, 0)]
        added: np.ndarray = calmed.astype(np.float32) @ self._calming.against
        return added

    def plan(
        self, rows: np.ndarray, slots: np.ndarray, places: np.ndarray, unknown: np.ndarray, written: np.ndarray
    ) -> Forward:
        """The next forward.

        Args:
            rows, slots: int [n], of tokens. places: int [n], which token of its request's in this forward each is: one
                comes after the other.
            unknown: bool [n], whether `known` does not know it. written: bool [n], whether it writes a token.
        """
        groups = [unknown & (places == place) for place in range(int(places[unknown].max(initial=-1)) + 1)]
        tokens = [self._tokens(rows[group], slots[group]) for group in groups]
        reads = written & (self.until[slots] < FAR if self._calming is not None else self._targeted[slots])
        noted = None
        if reads.any():
            same = len(groups) == 1 and np.array_equal(groups[0], reads)
            noted = tokens[0] if same else self._tokens(rows[reads], slots[reads])
            if self._targeted[slots[reads]].any():
                noted.labels = self._labels[noted.slots]
        return Forward(tokens, noted)

    def _tokens(self, rows: np.ndarray, slots: np.ndarray) -> Tokens:
        moved = self._arrays.moved(slots)
        tokens = Tokens(self._arrays.moved(rows), moved, moved * self._shape.ring)
        if self._spares[slots].any():
            tokens.muted = self._muted[moved]
        if self._reading is not None:
            tokens.first, tokens.history = self._first[moved], moved * self._shape.tokens
        if self._targeted[slots].any():
            targets = self._targets[moved]
            tokens.level, tokens.rate, tokens.cap = targets[:, 0], targets[:, 1], targets[:, 2]
            tokens.moves = tokens.rate > 0
        return tokens

    def apply(self, buffer: Tensor, forward: Forward, inputs: Inputs, fresh: bool = True) -> None:
        """Multiplies rows of the coefficients by their gains, before the forward.

        Args:
            buffer: [tokens, columns]. fresh: whether they were written anew since the last forward.
        """
        coefficients, numbers = self._arrays.seen(buffer), self._arrays.seen(inputs.tokens)
        positions = self._arrays.seen(inputs.positions)
        self._noted = forward.noted
        if forward.noted is not None:
            forward.noted.positions = positions[forward.noted.rows]
        for tokens in forward.tokens:
            if tokens is not forward.noted:
                tokens.positions = positions[tokens.rows]
            if fresh or tokens.base is None:
                tokens.base = coefficients[tokens.rows]
            coefficients[tokens.rows] = self._multiplied(tokens, numbers)

    def _multiplied(self, of: Tokens, numbers: Array) -> Array:
        """The coefficients of one token each, [n, columns]."""
        last = self._shape.ring - 1
        before, here = of.ring + ((of.positions - 1) & last), of.ring + (of.positions & last)
        place = None if of.first is None else of.positions - of.first - self._shape.span
        values, live = of.base, None
        if of.muted is not None:
            live = self._live(of, before, here, numbers)
            values = values * live[:, None]
        if of.level is not None:
            values = values * self._moved(of, before, here, place, live)[:, None]
        if self._calming is not None:
            values = self._calming.apply(values, before, here, place, of.history)
        return values

    def _live(self, of: Tokens, before: Array, here: Array, numbers: Array) -> Array:
        """Which are in no phase that is spared: bool [n]."""
        classes = self._classes[(numbers[of.rows] + 1).clip(0, len(self._classes) - 1)]
        states = self._table[self._states.values[before], classes]
        self._states.values[here] = states
        return (self._spared[states] & of.muted) == 0

    def _moved(self, of: Tokens, before: Array, here: Array, place: Array, live: Array | None) -> Array:
        """The gains of targets, 1 for those that have none: float32 [n]."""
        old = self._gains.values[before]
        step = of.rate * (of.level - self._read[of.history + place.clip(min=0)])
        new = self._arrays.minimum((old + step).clip(min=0), of.cap)
        moves = of.moves & (place >= 0) if live is None else of.moves & (place >= 0) & live
        gains = self._arrays.where(moves, new, old)
        self._gains.values[here] = gains
        return gains

    def take(self, logits: Tensor) -> None:
        """After the forward: what was read in it, [rows, labels]."""
        noted, self._noted = self._noted, None
        if noted is None:
            return
        read = self._arrays.softmax(self._arrays.seen(logits)[noted.rows])
        places = noted.history + noted.positions - noted.first
        if noted.labels is not None:
            self._read[places] = (read * noted.labels).sum(-1)
        if self._calming is not None:
            self._calming.note(places, read)
