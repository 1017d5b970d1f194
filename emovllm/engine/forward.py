"""The tokens of forwards whose coefficients are multiplied, or whose read-outs count (`emovllm.engine.gains`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from emovllm.engine.arrays import Array


@dataclass(slots=True, eq=False)
class Tokens:
    """Tokens of forwards, one of a request, and what their requests ask for; all [n].

    rows, slots: of the batch, of their requests. ring, history: where their slots begin in rings and in what was read.
    first: position of the reply's first token. muted: bits of the phases that are spared, None where nobody spares any.
    level, rate, cap: of targets, None where nobody has one; moves: who has. labels: of the targets, [n, labels].

    positions: in the latest forward. base: the coefficients that are multiplied, [n, columns].
    """

    rows: Array
    slots: Array
    ring: Array
    history: Array = None
    first: Array = None
    muted: Array = None
    level: Array = None
    rate: Array = None
    cap: Array = None
    moves: Array = None
    labels: Array = None
    positions: Array = None
    base: Array = None


class Forward(NamedTuple):
    """What gains do in a forward, and in those after it that compute one more token of the same requests.

    tokens: those that are multiplied, of each request the first, the second ... noted: those whose read-outs count.
    """

    tokens: list[Tokens]
    noted: Tokens | None
