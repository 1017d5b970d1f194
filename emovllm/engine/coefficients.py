"""Which token of a batch gets which emotion: the position rule, and the buffer that the compiled graph reads.

A token at absolute position p of its request is injected when p >= prompt_len - 1 (scope `generation`: what "the last
token of every forward" means without a cache, paging or chunks), when p == prompt_len - 1 (`prompt_last`), always
(`all`), or when p >= prompt_len - N (`prompt_tail:N`); of a request with a schedule, by the share that it gives token
p - (prompt_len - 1) of the reply. Only the position and the original prompt length count, so chunked prefill,
recomputation after preemption and speculative decoding all give the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from emovllm.emotion import Wire
from emovllm.engine.gains import FAR, Forward, Gains, Inputs
from emovllm.engine.injected import Injected, by_slot, injected_tokens
from emovllm.engine.shares import Shares
from emovllm.engine.staging import Staging
from emovllm.schedule import Schedule

_NEVER = np.iinfo(np.int64).max


def rows_for(max_num_batched_tokens: int, capture_size: int, tensor_parallel_size: int) -> int:
    """Rows of the buffer: as many as a forward may have tokens, its padding included.

    Batches are padded to the sizes of graphs, and to a multiple of the ranks where those share the tokens of a norm
    (sequence parallelism). One more: the model is traced with as many tokens as there may be, and the compiler must not
    take two sizes that are equal then for one.
    """
    tokens = max(max_num_batched_tokens, capture_size)
    return -(-tokens // tensor_parallel_size) * tensor_parallel_size + 1


class BatchAdapters(NamedTuple):
    """The LoRA adapters of a batch.

    layout: the `lora_int_id` in each slot. vLLM may put another adapter into a slot under an unchanged batch, when one
        is loaded meanwhile.
    lora_ids: int [requests], 0 for none.
    """

    layout: tuple[int | None, ...]
    lora_ids: np.ndarray

    def slots(self, requests: np.ndarray) -> np.ndarray:
        """The slot of some requests' adapters, -1 for none; requests, result: int [n]."""
        slots = {0: -1, **{lora_id: slot for slot, lora_id in enumerate(self.layout) if lora_id is not None}}
        return np.array([slots[lora_id] for lora_id in self.lora_ids[requests].tolist()], np.int64)


class Coefficients:
    """`buffer`: float32 [max_tokens, columns] on the device; its address never changes.

    A column holds one emotion's weight; a circuit has as many in a row as it has emotions. With LoRA, each slot for an
    adapter has `capacity` further columns, because the adapter changes the projection that the emotion goes through
    (`emovllm.engine.lora`). With steering, the last `capacity` columns are the weights of requests that ask for that
    method; their others are 0.
    """

    def __init__(
        self,
        capacity: int,
        max_tokens: int,
        device: torch.device,
        max_requests: int,
        adapters: int = 0,
        steering: bool = False,
        gains: Gains | None = None,
    ) -> None:
        columns = capacity * (1 + adapters + steering)
        self.buffer = torch.zeros(max_tokens, columns, dtype=torch.float32, device=device)
        self._staging = Staging(self.buffer)
        self._columns: dict[str, dict[str, int]] = {}  # of each emotion, by circuit
        # The steered requests, a slot each.
        self._slots: dict[str, int] = {}
        self._free = list(range(max_requests))
        self._capacity = capacity
        self._steering = steering
        self._weights = np.zeros((max_requests, capacity * (1 + steering)), np.float32)
        self._prompt = np.zeros(max_requests, np.int64)
        self._first = np.zeros(max_requests, np.int64)  # first position injected
        self._last = np.zeros(max_requests, np.int64)  # last position injected
        self._shares = Shares(max_requests)
        self.gains = Gains(max_requests, device) if gains is None else gains
        # The current batch: which of its requests are steered, and what each of their tokens gets.
        self._req_ids: list[str] = []
        self._layout: tuple[int | None, ...] = ()
        self._joined = False
        self._rows = np.zeros(0, np.int64)
        self._batch_slots = np.zeros(0, np.int64)
        self._values = np.zeros((0, columns), np.float32)
        self._scheduled = False  # whether any has a schedule
        self._gained = False  # whether the gain of any depends on what is written or read
        # Where the last forward computed one token of each reply: those injected and their gains, as the next has them.
        self._decoding: Injected | None = None
        self._forward: Forward | None = None
        # Why no emotion can be applied any more, if so.
        self.broken: str | None = None

    def place(self, circuit: str, names: Sequence[str], first: int) -> None:
        """Gives the emotions of a circuit (its digest) the columns from `first` on."""
        self._columns[circuit] = {name: first + column for column, name in enumerate(names)}

    def displace(self, circuit: str) -> None:
        """Forgets a circuit, which no request uses any more."""
        self._columns.pop(circuit, None)

    def join(
        self, req_id: str, wire: Wire | None, prompt_len: int, tokens: Callable[[], Sequence[int]] = tuple
    ) -> None:
        """Takes a request up, or again after a preemption.

        Args:
            wire: its resolved emotion, or None.
            prompt_len: the ORIGINAL prompt length; generated tokens recomputed after preemption stay generated.
            tokens: gives all that are known, the prompt's and those generated before a preemption.
        Raises: RuntimeError for a steered request while `broken`.
        """
        self.leave(req_id)
        if wire is None:
            return
        if self.broken:
            raise RuntimeError(self.broken)
        first_column = 0
        if wire.method != "circuit":
            if not self._steering:
                raise RuntimeError(f"this engine has no emotion method {wire.method!r}")
            first_column = self._capacity
        first = wire.first(prompt_len)
        prompt_len = wire.prompt_length(prompt_len)
        if not self._free:
            self._grow()
        # After a preemption the same as before, the last that was freed: what was read for it is there.
        slot = self._slots[req_id] = self._free.pop()
        self._joined = True
        self._weights[slot] = 0
        for name, weight in wire.weights.items():
            self._weights[slot, first_column + self._columns[wire.circuit][name]] = weight
        self._prompt[slot] = prompt_len
        self._first[slot] = first
        once = wire.scope == "prompt_last"
        self._last[slot] = prompt_len - 1 if once and not wire.calm else _NEVER
        # What guards may calm goes on to the reply's end.
        self._shares.join(slot, Schedule(end=1) if once and wire.calm else wire.schedule)
        if wire.muted or wire.target is not None or wire.calm:
            self.gains.join(slot, wire, prompt_len, tokens()[prompt_len:])

    def leave(self, req_id: str) -> None:
        """Forgets a request, if it is known."""
        slot = self._slots.pop(req_id, None)
        if slot is not None:
            self._free.append(slot)
            self._shares.join(slot, None)
            self.gains.leave(slot)

    def update(
        self,
        req_ids: Sequence[str],
        num_scheduled: np.ndarray,
        num_computed: np.ndarray,
        adapters: BatchAdapters | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        """Prepares the buffer for the next forward.

        Args:
            req_ids: the batch's requests in order; the arrays below, int [requests], follow it.
            num_scheduled: tokens of each request in this forward.
            num_computed: tokens computed before it, so that the first one's position is this. Exact within the prompt;
                beyond it, drafts that are not yet known to be rejected may be counted.
            adapters: None without LoRA.
            inputs: needed where gains depend on what is written or read.
        """
        if not self._slots:
            self._decoding = None
            self._req_ids = []
            self._staging.write(self._rows[:0], self._values[:0])
            return
        layout = () if adapters is None else adapters.layout
        if self._joined or self._req_ids != req_ids or self._layout != layout:
            self._compose(req_ids, adapters)
            self._decoding = None
        last, single = self._decoding, bool((num_scheduled == 1).all())
        if last is not None and single:
            # One token more of each reply: every row is as it was, but for what changes in time.
            if self._scheduled or self._gained:
                self._go_on(last, num_computed, inputs)
            return
        starts = np.cumsum(num_scheduled) - num_scheduled
        computed = num_computed[self._rows]
        rows, which = injected_tokens(
            starts[self._rows],
            num_scheduled[self._rows],
            computed,
            self._first[self._batch_slots],
            self._last[self._batch_slots],
        )
        slots = self._batch_slots[which]
        places = rows - starts[self._rows][which]
        injected = Injected(rows, slots, places, self._values[which], self._prompt[slots] - 1)
        decoding = single and bool((computed >= self._prompt[self._batch_slots]).all())
        self._decoding, self._forward = injected if decoding else None, None
        self._write(injected, places + computed[which], inputs)

    def _go_on(self, last: Injected, num_computed: np.ndarray, inputs: Inputs | None) -> None:
        """Of a forward that computes one token more of each reply, what changes in time."""
        if self._gained and self._forward is None:
            self._write(last, num_computed[last.rows], inputs)
            return
        if self._scheduled:
            shares = self._shared(last, num_computed[last.rows])
            self._staging.write(last.rows, last.values * shares[:, None])
        if self._forward is not None:
            assert inputs is not None
            self.gains.apply(self.buffer, self._forward, inputs, fresh=self._scheduled)

    def _write(self, injected: Injected, positions: np.ndarray, inputs: Inputs | None) -> None:
        """The rows of the buffer. positions: of the tokens in their requests, int [n]."""
        values = injected.values
        if self._scheduled:
            values = values * self._shared(injected, positions)[:, None]
        if not self._gained:
            self._staging.write(injected.rows, values)
            return
        until = self.gains.until[injected.slots]
        unknown = positions >= until
        known = (until < FAR) & ~unknown
        values = values.copy() if known.any() else values
        for slot, tokens in by_slot(injected.slots, known):
            values[tokens] *= self.gains.known(slot, positions[tokens])[:, None]
            if self.gains.guarded:
                values[tokens] += self.gains.calmed(slot, positions[tokens])
        self._staging.write(injected.rows, values)
        assert inputs is not None
        written = positions >= injected.last
        forward = self.gains.plan(injected.rows, injected.slots, injected.places, unknown, written)
        if not known.any():
            self._forward = forward
        self.gains.apply(self.buffer, forward, inputs)

    def _shared(self, injected: Injected, positions: np.ndarray) -> np.ndarray:
        """The share of its request's strength that each token gets: float32 [n]. positions: as of `_write`."""
        places = positions - injected.last
        scheduled = self._shares.scheduled[injected.slots]
        if scheduled.all():
            return self._shares.of(injected.slots, places)
        shares = np.ones(len(positions), np.float32)
        shares[scheduled] = self._shares.of(injected.slots[scheduled], places[scheduled])
        return shares

    def _compose(self, req_ids: Sequence[str], adapters: BatchAdapters | None) -> None:
        self._req_ids = list(req_ids)
        self._layout = () if adapters is None else adapters.layout
        self._joined = False
        slots = np.fromiter((self._slots.get(req_id, -1) for req_id in req_ids), np.int64, len(req_ids))
        self._rows = np.flatnonzero(slots >= 0)
        self._batch_slots = slots[self._rows]
        self._scheduled = bool(self._shares.scheduled[self._batch_slots].any())
        self._gained = bool((self.gains.until[self._batch_slots] < FAR).any())
        weights = self._weights[self._batch_slots]
        self._values = np.zeros((len(weights), self.buffer.shape[1]), np.float32)
        emotions = self._capacity
        self._values[:, :emotions] = weights[:, :emotions]
        if self._steering:
            self._values[:, -emotions:] = weights[:, emotions:]
        # Batches of made-up requests, which data parallelism runs while other ranks are busy, have stale adapters.
        if adapters is not None and len(self._rows):
            adapter = adapters.slots(self._rows)
            adapted = np.flatnonzero(adapter >= 0)
            columns = (1 + adapter[adapted, None]) * emotions + np.arange(emotions)
            self._values[adapted[:, None], columns] = weights[adapted, :emotions]

    def _grow(self) -> None:
        """More requests than expected: preempted ones keep their slot."""
        count = len(self._prompt)
        self._free = list(range(count, 2 * count))
        for name in ("_weights", "_prompt", "_first", "_last"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        self._shares.grow()
        self.gains.grow()
