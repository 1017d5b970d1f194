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


class Calm(NamedTuple):
    """A guard that calms: while a label was read above `bound` for `tokens` tokens in a row, a request has none of its
    own emotion, and `against` in its place.

    label: the probe's. against: by column of the coefficients.
    """

    label: int
    bound: float
    tokens: int
    against: dict[int, float]

    def counts(self, read: np.ndarray, tokens: int, span: int) -> np.ndarray:
        """How many readings in a row were above the bound, at each token of a reply.

        Args:
            read: float32 [n], the label's probability where each was written, as far as it is known.
        Returns: int [tokens].
        """
        counts = np.zeros(tokens, np.int64)
        for token in range(span, tokens):
            counts[token] = counts[token - 1] + 1 if read[token - span] > np.float32(self.bound) else 0
        return counts


class _Known(NamedTuple):
    """Of the positions from `first` on whose tokens were known when the request came: the gains, float32 [n], and
    which guards calm it, bool [n, guards]."""

    first: int
    gains: np.ndarray
    calmed: np.ndarray


class _Rows(NamedTuple):
    """Tokens of a forward, on the device: their rows, the slots of their requests, their positions; int [n]."""

    rows: Tensor
    slots: Tensor
    positions: Tensor


class Gains:
    """Of requests, by slot.

    span: the most tokens of a request that is beyond its prompt in one forward: one, and the drafts.
    """

    def __init__(
        self,
        slots: int,
        device: torch.device,
        span: int = 1,
        automaton: Automaton | None = None,
        reads: Reads | None = None,
    ) -> None:
        self._device, self._span, self._automaton, self._reading = device, span, automaton, reads
        self._calms: Sequence[Calm] = ()
        # What each guard that calms adds, float32 [guards, columns].
        self.against: np.ndarray | None = None
        # By slot and position, the latest: a forward needs the one before its first token, rejected ones included.
        self._ring = 1 << span.bit_length()
        if automaton is not None:
            self._states = self._zeros((slots, self._ring), torch.int64)
            self._muted = self._zeros((slots,), torch.uint8)
            self._classes = torch.from_numpy(automaton.classes).long().to(device)
            self._table = torch.from_numpy(automaton.table).long().to(device)
            self._spared = torch.from_numpy(automaton.spared).to(device)
        if reads is not None:
            self._gains = self._zeros((slots, self._ring))
            self._first = self._zeros((slots,), torch.int64)
            # A target's level, rate and cap; 1, 0 and 1 for none, whose gain stays.
            self._targets = self._zeros((slots, 3))
            self._labels = self._zeros((slots, reads.labels))
            self._read = self._zeros((slots, reads.tokens))
        self._known: dict[int, _Known] = {}
        # By slot: the position from which on the device alone knows a request's gains; whether it has a target.
        self.until = np.full(slots, FAR)
        self._targeted = np.zeros(slots, bool)
        self._noted: _Rows | None = None
        self._held: tuple[np.ndarray, np.ndarray, Tensor, Tensor] | None = None

    def guard(self, calms: Sequence[Calm], columns: int) -> None:
        """Has guards calm every request, before the first one comes. columns: of the coefficients."""
        assert self._reading is not None
        self._calms = calms
        self.against = np.zeros((len(calms), columns), np.float32)
        for row, calm in zip(self.against, calms, strict=True):
            row[list(calm.against)] = list(calm.against.values())
        self._against = self._moved(self.against)
        self._guarded = torch.tensor([calm.label for calm in calms], device=self._device)
        self._bounds = torch.tensor([calm.bound for calm in calms], device=self._device)
        self._runs = torch.tensor([calm.tokens for calm in calms], device=self._device)
        slots = len(self.until)
        self._counts = self._zeros((slots, self._ring, len(calms)), torch.int64)
        self._watched = self._zeros((slots, self._reading.tokens, len(calms)))

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    @property
    def nbytes(self) -> int:
        """On the device."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    def join(self, slot: int, wire: Wire, prompt_len: int, replied: Sequence[int]) -> None:
        """Takes a request up, or again after a preemption, with the tokens of its reply so far.

        Raises: RuntimeError where the engine does not know phases or reads nothing, and the request needs it.
        """
        if (wire.muted and self._automaton is None) or (wire.target is not None and self._reading is None):
            raise RuntimeError("this engine does not know what the gain of this emotion goes by")
        live = np.ones(len(replied) + 1, bool)
        if self._automaton is not None and wire.muted:
            start = self._automaton.start(wire.within)
            states = np.array([start, *self._automaton.advance(start, replied)])
            live = (self._automaton.spared[states] & wire.muted) == 0
            self._states[slot] = self._latest(states, prompt_len - 1)
        if self._automaton is not None:
            self._muted[slot] = wire.muted
        gains = np.ones(len(replied) + 1, np.float32)
        self._targeted[slot] = wire.target is not None
        if wire.target is not None:
            read = self._read[slot, : len(replied)].cpu().numpy()
            gains = wire.target.gains(read, live, self._span)
            self._labels[slot] = 0
            self._labels[slot, list(wire.target.labels)] = 1
        if self._reading is not None:
            level, rate, cap = wire.target[:2] + wire.target[3:] if wire.target is not None else (1.0, 0.0, 1.0)
            self._targets[slot] = torch.tensor([level, rate, cap])
            self._first[slot] = prompt_len - 1
            self._gains[slot] = self._latest(gains, prompt_len - 1)
        calmed = np.zeros((len(gains), len(self._calms)), bool)
        if self._calms:
            watched = self._watched[slot, : len(replied)].cpu().numpy()
            counts = np.stack(
                [calm.counts(watched[:, row], len(gains), self._span) for row, calm in enumerate(self._calms)], 1
            )
            calmed = counts >= [calm.tokens for calm in self._calms]
            self._counts[slot] = self._latest(counts, prompt_len - 1)
        self._known[slot] = _Known(prompt_len - 1, gains * live * ~calmed.any(1), calmed)
        self.until[slot] = prompt_len + len(replied)

    def leave(self, slot: int) -> None:
        """Forgets the request in a slot, if there is one."""
        self._known.pop(slot, None)
        self.until[slot], self._targeted[slot] = FAR, False

    def grow(self) -> None:
        """Twice the slots."""
        self.until = np.concatenate([self.until, np.full_like(self.until, FAR)])
        self._targeted = np.concatenate([self._targeted, np.zeros_like(self._targeted)])
        for name in ("_states", "_muted", "_gains", "_first", "_targets", "_labels", "_read", "_counts", "_watched"):
            if (old := getattr(self, name, None)) is not None:
                setattr(self, name, torch.cat([old, torch.zeros_like(old)]))

    def known(self, slot: int, positions: np.ndarray) -> np.ndarray:
        """The gains at positions before `until`, 1 before the reply: int [n] to float32 [n]."""
        first, gains, _ = self._known[slot]
        return np.where(positions < first, np.float32(1), gains[np.maximum(positions - first, 0)])

    def calmed(self, slot: int, positions: np.ndarray) -> np.ndarray:
        """What guards add at positions before `until`: int [n] to float32 [n, columns]."""
        known = self._known[slot]
        assert self.against is not None
        calmed: np.ndarray = known.calmed[np.maximum(positions - known.first, 0)].astype(np.float32) @ self.against
        return calmed

    def note(self, rows: np.ndarray, slots: np.ndarray, inputs: Inputs) -> None:
        """The rows of the next forward whose read-outs will count, of targets and guards. rows, slots: int [n]."""
        targeted = self.until[slots] < FAR if self._calms else self._targeted[slots]
        self._noted = None
        if targeted.any():
            self._noted = self._placed(rows[targeted], slots[targeted], inputs)

    def take(self, logits: Tensor) -> None:
        """After a forward: what was read in it, [rows, labels]."""
        noted, self._noted = self._noted, None
        if noted is not None:
            slots = noted.slots
            read, places = logits[noted.rows].softmax(-1), noted.positions - self._first[slots]
            if self._targeted.any():
                self._read[slots, places] = (read * self._labels[slots]).sum(-1)
            if self._calms:
                self._watched[slots, places] = read[:, self._guarded]

    def apply(self, buffer: Tensor, rows: np.ndarray, slots: np.ndarray, places: np.ndarray, inputs: Inputs) -> None:
        """Multiplies rows of the coefficients by their gains.

        Args:
            buffer: [tokens, columns].
            rows, slots: int [n], of tokens that `known` does not know. places: int [n], which token of its request's in
                this forward each is: one comes after the other.
        """
        for place in range(int(places.max(initial=-1)) + 1):
            here = places == place
            at, of, positions = self._placed(rows[here], slots[here], inputs)
            values = buffer[at] * self._gain(of, inputs.tokens[at], positions)[:, None]
            if self._calms:
                calmed = self._calm(of, positions)
                values = torch.where(calmed.any(1, keepdim=True), calmed.float() @ self._against, values)
            buffer[at] = values

    def _placed(self, rows: np.ndarray, slots: np.ndarray, inputs: Inputs) -> _Rows:
        """On the device. Most steps decode the requests of the last one: their rows and slots are there already."""
        held = self._held
        if held is None or not (np.array_equal(held[0], rows) and np.array_equal(held[1], slots)):
            # Copies: on a CPU a tensor has the array's own memory.
            held = self._held = rows, slots, self._moved(rows.copy()), self._moved(slots.copy())
        return _Rows(held[2], held[3], inputs.positions[held[2]].long())

    def _gain(self, slots: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """Of one token each. int [n], int [n], int [n] to float32 [n]."""
        before, here = (positions - 1) % self._ring, positions % self._ring
        live: Tensor | None = None
        if self._automaton is not None:
            # Of padding, and of what a padded vocabulary has more, the class is that of the first.
            known = (tokens >= 0) & (tokens < len(self._classes))
            classes = torch.where(known, self._classes[torch.where(known, tokens, 0).long()], 0)
            states = self._table[self._states[slots, before], classes]
            self._states[slots, here] = states
            live = (self._spared[states] & self._muted[slots]) == 0
        if self._reading is None or not self._targeted.any():
            return torch.ones_like(slots, dtype=torch.float32) if live is None else live.float()
        old = self._gains[slots, before]
        level, rate, cap = self._targets[slots].unbind(1)
        place = positions - self._first[slots] - self._span
        new = (old + rate * (level - self._read[slots, place.clamp(min=0)])).clamp(min=torch.zeros_like(cap), max=cap)
        moves = (place >= 0) & (rate > 0) if live is None else (place >= 0) & (rate > 0) & live
        gains = torch.where(moves, new, old)
        self._gains[slots, here] = gains
        return gains if live is None else gains * live

    def _calm(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Which guards calm one token each: int [n], int [n] to bool [n, guards]."""
        before, here = (positions - 1) % self._ring, positions % self._ring
        place = positions - self._first[slots] - self._span
        old = self._counts[slots, before]
        over = self._watched[slots, place.clamp(min=0)] > self._bounds
        counts = torch.where((place >= 0)[:, None], torch.where(over, old + 1, 0), old)
        self._counts[slots, here] = counts
        return counts >= self._runs

    def _latest(self, values: np.ndarray, first: int) -> Tensor:
        """The last of values by position, [n, ...] from `first` on, in their places of a ring."""
        ring = np.zeros((self._ring, *values.shape[1:]), values.dtype)
        positions = first + np.arange(len(values))[-self._ring :]
        ring[positions % self._ring] = values[-self._ring :]
        return self._moved(ring)

    def _moved(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":
            # From pageable memory a copy would wait for the device.
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)
