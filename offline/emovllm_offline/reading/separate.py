"""How far apart emotions lie in a model's states, while it writes emotional replies and while it reads the same words.

`emovllm probe separate`. In the work folder: the states of each way to extract them (a folder each).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from emovllm.errors import DataError
from emovllm.spec import Frozen
from emovllm_offline.data.messages import load_messages
from emovllm_offline.data.prompts import render
from emovllm_offline.data.styles import Frame, Span
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.reading.in_chat import Chats
from emovllm_offline.reading.pairs import Pairs, Separation, cosines, mean_cosine
from emovllm_offline.reading.prompts import Read, unread
from emovllm_offline.reading.results import Figure
from emovllm_offline.reading.states import order_of, read_states
from emovllm_offline.storage.results_file import ResultsFile

# While the model writes a reply that its prompt asks for; the same without the prompt that asks; while it reads it as
# its user's message.
Way = Literal["generation", "own turn", "comprehension"]
WAYS: tuple[Way, ...] = get_args(Way)
# All tokens of a reply count.
_WHOLE = Span(last=1_000_000)
_UNRELATED = "sev-test"
_ASKED = "What happened?"  # what they are replies to, where they are replies


@dataclass(frozen=True, slots=True)
class Piece:
    """A reply in an emotion. frame: the prompt that brought it about, without the reply. group: its scenario."""

    reply: str
    emotion: str
    group: str
    frame: Frame
    user: str


class Apart(Frozen):
    """At one layer, by one way; of the states as they are (raw), or less the mean state of unrelated texts (centred).

    vectors: the mean cosine between the emotions' mean states. unrelated: the mean cosine between states of unrelated
    texts, which is what anisotropy alone gives. effect: Cohen's d of the cosines between replies in one emotion against
    those in two, of different scenarios, with an interval over scenarios. auc, p: Mann-Whitney's U of the same, as the
    share of pairs of cosines in which one emotion's is the larger, and its probability by chance.
    """

    vectors: float
    unrelated: float
    effect: Figure
    auc: float
    p: float


class LayerApart(Frozen):
    layer: int
    depth: float
    raw: Apart
    centred: Apart


class Separated(ResultsFile):
    """All of `separate.json`."""

    FILE = "separate.json"

    format: Literal["emovllm-probe-separate"] = "emovllm-probe-separate"
    format_version: Literal[1] = 1
    model: str
    emotions: dict[str, int]
    groups: int
    unrelated: int
    ways: dict[Way, tuple[LayerApart, ...]]
    about: dict[str, Any]

    def best(self, way: Way) -> LayerApart:
        """The layer with the largest effect of the centred states."""
        return max(self.ways[way], key=lambda of: of.centred.effect.value)


@dataclass(frozen=True, slots=True)
class Reads:
    """The pieces that can be read in every way, and how, [ways][pieces]; behind them unrelated texts, as they are."""

    pieces: tuple[Piece, ...]
    ways: dict[Way, list[Read]]
    unrelated: int
    left_out: int


def reads_of(tokenizer: Any, pieces: Sequence[Piece], neutral: Frame, most: int) -> Reads:
    """neutral: asks for no emotion. most: tokens of a piece in each way.

    Raises: PromptError; DataError where fewer than two emotions or scenarios are left.
    """
    chats = Chats(tokenizer, None)

    def read(piece: Piece) -> dict[Way, Read] | None:
        """None where one of the ways has too many tokens, or none that count."""
        below = {"generation": piece.frame, "own turn": neutral}
        ways: dict[Way, Read] = {"comprehension": chats.read(piece.reply, "text", "mean")}
        for way in WAYS[:2]:
            frame = below[way].model_copy(update={"reply": piece.reply})
            prompt = render(tokenizer, frame, piece.user, _WHOLE)
            ways[way] = Read(prompt.ids, tuple(prompt.positions))
        return None if any(unread(one, most) for one in ways.values()) else ways

    of_pieces = [(piece, of) for piece in pieces if (of := read(piece)) is not None]
    if len({piece.emotion for piece, _ in of_pieces}) < 2 or len({piece.group for piece, _ in of_pieces}) < 2:
        raise DataError(
            f"two emotions and two scenarios are needed at least, of replies with at most {most} tokens: give another "
            "run of emovllm elicit, or a larger --max-tokens"
        )
    unrelated = [of for piece in _unrelated(neutral) if (of := read(piece)) is not None]
    if len(unrelated) < 2:
        raise DataError(f"no unrelated texts have at most {most} tokens: give a larger --max-tokens")
    ways = {way: [of[way] for of in [*(of for _, of in of_pieces), *unrelated]] for way in WAYS}
    return Reads(tuple(piece for piece, _ in of_pieces), ways, len(unrelated), len(pieces) - len(of_pieces))


def pieces_digest(pieces: Sequence[Piece]) -> str:
    """sha256 over replies, emotions and scenarios."""
    rows = [(piece.reply, piece.emotion, piece.group) for piece in pieces]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _unrelated(neutral: Frame) -> list[Piece]:
    """Sentences of everyday life, each of another scenario."""
    sentences = dict.fromkeys(message.user.split("\n")[0] for message in load_messages(_UNRELATED))
    return [Piece(sentence, "", "", neutral, _ASKED) for sentence in sentences]


def separate(
    decoder: Decoder, reads: Reads, work: Path, about: dict[str, Any], *, tokens: int, seed: int = 0, shown: bool = True
) -> dict[Way, tuple[LayerApart, ...]]:
    """Of each way, every layer. about: JSON values that tell the replies apart from others; an interrupted reading goes
    on. Raises: CheckpointError, ActivationError, OSError."""
    emotions = sorted({piece.emotion for piece in reads.pieces})
    label = np.array([emotions.index(piece.emotion) for piece in reads.pieces])
    pairs = Pairs(label, [piece.group for piece in reads.pieces], seed)
    found: dict[Way, tuple[LayerApart, ...]] = {}
    for way, texts in reads.ways.items():
        place = work / way.replace(" ", "-")
        with read_states(decoder, texts, place, {**about, "way": way}, tokens=tokens, shown=shown) as planes:
            count, order = planes.shape[0], order_of(texts)
            layers = []
            for layer in range(count):
                states = np.empty((len(texts), decoder.hidden_size), np.float32)
                states[order] = planes.plane(layer)
                layers.append(_layer(layer, (layer + 1) / count, states, label, pairs))
        found[way] = tuple(layers)
    return found


def _layer(layer: int, depth: float, states: np.ndarray, label: np.ndarray, pairs: Pairs) -> LayerApart:
    """states: of the pieces, then of unrelated texts, [texts, hidden]."""
    of_pieces, unrelated = states[: len(label)], states[len(label) :]
    centre = unrelated.mean(0)
    return LayerApart(
        layer=layer,
        depth=depth,
        raw=_apart(of_pieces, unrelated, label, pairs),
        centred=_apart(of_pieces - centre, unrelated - centre, label, pairs),
    )


def _apart(of_pieces: np.ndarray, unrelated: np.ndarray, label: np.ndarray, pairs: Pairs) -> Apart:
    vectors = np.stack([of_pieces[label == one].mean(0) for one in range(label.max() + 1)])
    found: Separation = pairs.separation(cosines(of_pieces))
    return Apart(
        vectors=mean_cosine(vectors),
        unrelated=mean_cosine(unrelated),
        effect=Figure.of(found.effect),
        auc=found.auc,
        p=found.p,
    )
