"""What a probe reads in the states that write replies, token by token, with a circuit's emotion or without one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emovllm.circuit import Circuit
from emovllm.emotion import Emotion
from emovllm.errors import ActivationError
from emovllm.fields import resolve
from emovllm.spec import Scope
from emovllm_offline.model.continued import Continued, continued
from emovllm_offline.model.control import Control
from emovllm_offline.model.hooks import hooked
from emovllm_offline.reading.reader import Reader
from emovllm_offline.reading.settings import Persisting
from emovllm_offline.storage.checkpoint import Arrays, Checkpoint


@dataclass(frozen=True, slots=True)
class Way:
    """How a reply is made. scope: of the emotion; None for the plain model. off_after: the emotion is on for so many
    tokens of the reply alone."""

    name: str
    scope: Scope | None = None
    off_after: int | None = None

    @property
    def begin(self) -> int:
        """The token, from 1, from which on what is read is left to itself."""
        return self.off_after or 1


PLAIN = Way("unsteered")


class Ask(NamedTuple):
    """One reply. message: its place. emotion: None for the plain model."""

    way: Way
    message: int
    emotion: str | None = None


@dataclass(frozen=True, slots=True)
class Readings:
    """logits: float32 [replies, tokens, labels], each token's in the state that wrote it. ends: int [replies], of how
    many tokens each would have been."""

    logits: np.ndarray
    ends: np.ndarray


def steered_ways(settings: Persisting) -> list[Way]:
    """Those that need a circuit. The emotion is never off before the reply's end where that comes first."""
    ways: dict[str, list[Way]] = {
        "prompt_last": [Way("prompt_last", "prompt_last")],
        "generation": [Way("generation", "generation")],
        "off-after": [
            Way(f"off after {n}", "generation", n) for n in sorted(set(settings.off_after)) if n < settings.max_tokens
        ],
    }
    return [way for kind, of in ways.items() if kind in settings.conditions for way in of]


def deal(labels: Sequence[str], emotions: Sequence[str]) -> list[str]:
    """An emotion for each message, in turn; messages of one label get all of them. labels: of the messages."""
    dealt = [""] * len(labels)
    for turn, place in enumerate(np.argsort(np.array(labels), kind="stable").tolist()):
        dealt[place] = emotions[turn % len(emotions)]
    return dealt


class Steering:
    """A circuit on the model: the emotions of replies."""

    def __init__(self, network: Any, circuit: Circuit, strength: float) -> None:
        self.circuit = circuit
        self._control = Control(network, circuit)
        self._strength = strength

    def emotion(self, way: Way, name: str) -> Emotion:
        """Raises: EmotionError, also where it is too strong."""
        fields: dict[str, Any] = {"emotion": name, "emotion_strength": self._strength, "emotion_scope": way.scope}
        if way.off_after is not None:
            fields["emotion_schedule"] = {"to": way.off_after}
        emotion = resolve(fields, self.circuit.spec)
        assert emotion is not None
        return emotion

    def on(self, way: Way, names: Sequence[str], prompt_len: int) -> Any:
        """A context in which one batch of replies is made, each in its emotion. prompt_len: padding included."""
        return self._control.emotion([self.emotion(way, name) for name in names], prompt_len)


def read_replies(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    asks: Sequence[Ask],
    steering: Steering | None,
    settings: Persisting,
    checkpoint: tuple[Path, Mapping[str, Any]],
    *,
    shown: bool,
) -> Readings:
    """Makes replies in batches, each of one way, and reads them at the probe's own layer.

    prompts: token ids of each message. steering: None where no reply has an emotion. checkpoint: the file from which an
    interrupted run goes on, and JSON values that tell the messages apart from others.
    Raises: CheckpointError, EmotionError, ActivationError.
    """
    path, given = checkpoint
    shape = (len(asks), settings.max_tokens)
    arrays = Arrays(logits=np.zeros((*shape, len(reader.labels)), np.float32), ends=np.zeros(len(asks), np.int64))
    about = {
        **given,
        **reader.inputs(),
        "layer": reader.probe.spec.layer,
        "replies": [(ask.way.name, ask.message, ask.emotion) for ask in asks],
        "circuit": None if steering is None else steering.circuit.digest(),
        **{name: getattr(settings, name) for name in ("max_tokens", "strength", "temperature", "seed", "batch")},
    }
    todo = _batches(asks, prompts, settings.batch)
    saved = Checkpoint(path, json.loads(json.dumps(about)))
    for batch in saved.steps(todo, arrays, "replies", unit="batches", shown=shown):
        of = [asks[place] for place in batch]
        logits, made = _read(reader, [prompts[ask.message] for ask in of], of, steering, settings)
        arrays["logits"][list(batch)] = logits
        arrays["ends"][list(batch)] = made.ends
    if not np.isfinite(arrays["logits"]).all():
        raise ActivationError("the model's states are not finite: its weights are damaged, or its dtype too narrow")
    return Readings(arrays["logits"], arrays["ends"])


def _batches(asks: Sequence[Ask], prompts: Sequence[Sequence[int]], most: int) -> list[tuple[int, ...]]:
    """The places of each batch's replies, all of one way; of those the longest prompts first."""

    def way(place: int) -> str:
        return asks[place].way.name

    cut = []
    for _, places in groupby(sorted(range(len(asks)), key=way), key=way):
        of = sorted(places, key=lambda place: -len(prompts[asks[place].message]))
        cut += [tuple(of[begin : begin + most]) for begin in range(0, len(of), most)]
    return cut


def _read(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    asks: Sequence[Ask],
    steering: Steering | None,
    settings: Persisting,
) -> tuple[np.ndarray, Continued]:
    """One batch: logits [replies, tokens, labels], and the replies."""
    probe = reader.probe.at()
    logits: list[np.ndarray] = []

    def see(hidden: Tensor) -> None:
        # hidden: [replies, tokens, width]. The last position's is the state that writes the next token.
        logits.append(probe.logits(hidden[:, -1].float().cpu().numpy()))

    on: Any = nullcontext()
    emotions = [ask.emotion for ask in asks if ask.emotion is not None]
    if emotions:
        assert steering is not None
        on = steering.on(asks[0].way, emotions, max(map(len, prompts)))
    # A message's noise is its own, and the same in every way.
    seeds = [settings.seed * 1_000_003 + ask.message for ask in asks]
    # What is read is what the emotion left: hooks of one module run in their order.
    with on, hooked(reader.decoder.layers[probe.layer].seen_after_mlp(see)), torch.inference_mode():
        made = continued(
            reader.loaded.network, reader.loaded.tokenizer, prompts, settings.max_tokens, settings.temperature, seeds
        )
    return np.stack(logits, 1), made
