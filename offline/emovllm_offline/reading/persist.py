"""How long the emotion that a reply opens with can be read in the states that write it: `emovllm probe persist`.

In the work folder: what the probe read in each reply, token by token (persist.safetensors).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm.errors import CircuitError, DataError, OptionError
from emovllm.models import NAME, is_default, shipped_circuits
from emovllm.probe import probabilities
from emovllm.readout import NEUTRAL
from emovllm_offline.data import sev
from emovllm_offline.data.texts import Text
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import versions
from emovllm_offline.model.options import ModelOptions
from emovllm_offline.model.spec import is_of
from emovllm_offline.reading.chosen import Chosen, draw_texts, readable
from emovllm_offline.reading.corpus import draw
from emovllm_offline.reading.lasted import Lasted, Persistence, conclude
from emovllm_offline.reading.persistence import AmongOthers, Beside
from emovllm_offline.reading.prompts import reads_of
from emovllm_offline.reading.reader import Reader
from emovllm_offline.reading.replies import PLAIN, Ask, Readings, Steering, Way, deal, read_replies, steered_ways
from emovllm_offline.reading.settings import Persisting
from emovllm_offline.reading.shift import load_users
from emovllm_offline.storage.lock import forget
from emovllm_offline.storage.places import work_folder

READ = "persist.safetensors"
# Tokens of a prompt: longer messages are left out.
MOST = 512


@dataclass(frozen=True, slots=True)
class Settings:
    """How it is measured. command: for provenance."""

    persisting: Persisting = field(default_factory=Persisting)
    loading: ModelOptions = field(default_factory=ModelOptions)
    command: str = ""


@dataclass(frozen=True, slots=True)
class Users:
    """Messages of users. left_out: how many texts are none of them, by the reason."""

    texts: tuple[Text, ...]
    left_out: dict[str, int]


def run(model: str | None, probe: Path, data: str, circuit: str | None, out: Path, settings: Settings) -> Persistence:
    """Loads what it takes, and measures. Raises: EmovllmError, OSError."""
    texts = load_users(data)  # what fails at once, before the model is loaded
    found = circuit_of(model, circuit)
    reader = Reader.load(model, probe, settings.loading)
    users = users_of(texts, data in sev.PACKAGED, reader.labels, settings.persisting)
    return measure(reader, users, found, settings.persisting.work or work_folder(out), settings)


def circuit_of(model: str | None, circuit: str | None) -> Circuit | None:
    """The one that is named, or the default model's; None for no such. Raises: CircuitError."""
    if circuit is None and is_default(model):
        circuit = str(shipped_circuits() / NAME)
    return None if circuit is None else load_circuit(circuit)


def users_of(texts: Sequence[Text], packaged: bool, labels: Sequence[str], settings: Persisting) -> Users:
    """Draws the messages. packaged: their labels are valences, and no emotions. Raises: DataError."""
    if packaged:
        return Users(tuple(draw(texts, settings.limit, settings.seed, evenly=True)), {})
    drawn, left_out = draw_texts(texts, labels, settings.limit, settings.seed, evenly=True)
    return Users(tuple(drawn), left_out)


def measure(
    reader: Reader,
    users: Users,
    circuit: Circuit | None,
    work: Path,
    settings: Settings = Settings(),
    *,
    shown: bool = True,
) -> Persistence:
    """Raises: DataError, OptionError, CircuitError, EmotionError, CheckpointError, PromptError, ActivationError,
    OSError."""
    persisting = settings.persisting
    chosen = _chosen(reader, users, persisting)
    openings = _openings(chosen, reader.labels)
    ways = steered_ways(persisting) if circuit is not None else []
    if "unsteered" in persisting.conditions and any(openings):
        _require_others(chosen)
    elif not ways:
        raise _nothing(circuit, persisting)
    steering, dealt = None, [""] * len(chosen.texts)
    if circuit is not None and ways:
        steering = _steering(reader, circuit, persisting)
        dealt = deal([text.labels[0] for text in chosen.texts], _emotions(reader, circuit, persisting))
    # The plain replies come first: they are the controls of all.
    asks = [Ask(PLAIN, place) for place in range(len(dealt))]
    asks += [Ask(way, place, name) for way in ways for place, name in enumerate(dealt)]
    if persisting.fresh:
        forget(work)
    prompts = [read.ids for read in chosen.reads]
    checkpoint = (work / READ, {"texts": chosen.digest()})
    readings = read_replies(reader, prompts, asks, steering, persisting, checkpoint, shown=shown)
    found = Found(reader, chosen, openings, ways, dealt, readings)
    return Persistence(
        model=reader.loaded.public_id,
        digest=reader.probe.digest,
        circuit=circuit.digest() if steering is not None and circuit is not None else None,
        layer=reader.probe.spec.layer,
        of_layers=len(reader.decoder.layers),
        labels=reader.labels,
        length=persisting.max_tokens,
        messages=dict(sorted(Counter(text.labels[0] for text in chosen.texts).items())),
        groups=len(set(chosen.groups)),
        conditions=tuple(found.conditions(persisting)),
        about={
            **({"command": settings.command} if settings.command else {}),
            "data": {"sha256": chosen.digest(), "left out": chosen.left_out},
            "replies": "greedy" if persisting.temperature == 0 else f"temperature {persisting.temperature:g}",
            "strength": persisting.strength,
            "chat": reader.chat,
            "pooling": reader.probe.spec.pooling,
            "seed": persisting.seed,
            "probe's weights away": reader.distance,
            "dtype": reader.inputs()["dtype"],
            "versions": versions(),
        },
    )


@dataclass(frozen=True, slots=True)
class Found:
    """What was read. openings: whether a message's label is an emotion. dealt: the emotion of each message in all
    `ways`. readings: of the plain replies, then way by way, each in the messages' order."""

    reader: Reader
    chosen: Chosen
    openings: Sequence[bool]
    ways: Sequence[Way]
    dealt: Sequence[str]
    readings: Readings

    def conditions(self, settings: Persisting) -> Iterator[Lasted]:
        count = len(self.chosen.texts)
        labels, groups, seed = self.reader.labels, self.chosen.groups, settings.seed
        tokens = sorted({token for token in settings.tokens if token <= settings.max_tokens})
        read = probabilities(self.readings.logits).reshape(-1, count, settings.max_tokens, len(labels))
        ends = self.readings.ends.reshape(-1, count)
        going = np.arange(1, settings.max_tokens + 1) <= ends[..., None]
        opens = np.array(self.openings)
        if "unsteered" in settings.conditions and opens.any():
            sample = AmongOthers(read[0], self.chosen.label(labels), opens, going[0])
            yield conclude(PLAIN, sample, ends[0, opens], groups, labels, tokens, seed)
        for place, way in enumerate(self.ways, 1):
            label = np.array([labels.index(name) for name in self.dealt])
            asked, plain = (read[at, np.arange(count), :, label] for at in (place, 0))
            beside = Beside(asked, plain, label, going[place] & going[0])
            yield conclude(way, beside, ends[place], groups, labels, tokens, seed)


def _chosen(reader: Reader, users: Users, settings: Persisting) -> Chosen:
    """The messages that fit before a reply. Raises: OptionError, DataError, PromptError."""
    most = reader.decoder.most_tokens(MOST + settings.max_tokens) - settings.max_tokens
    if most < 1:
        raise OptionError(f"--max-tokens {settings.max_tokens}: the model has no more positions: give fewer")
    reads = reads_of(reader.loaded.tokenizer, [text.text for text in users.texts], "last", chat=True)
    return readable(users.texts, reads, most, users.left_out, "give shorter ones")


def _openings(chosen: Chosen, labels: Sequence[str]) -> list[bool]:
    """Whether each message's label is an emotion that the probe knows."""
    return [text.labels[0] in labels and text.labels[0] != NEUTRAL for text in chosen.texts]


def _require_others(chosen: Chosen) -> None:
    """Raises: DataError."""
    if len(names := {text.labels[0] for text in chosen.texts}) == 1:
        raise DataError(
            f"all messages have the label {names.pop()}: the control is what replies to messages with others read as, "
            "so give texts of several labels"
        )


def _nothing(circuit: Circuit | None, settings: Persisting) -> DataError | CircuitError | OptionError:
    if "unsteered" in settings.conditions:
        return DataError(
            "no message has the label of an emotion that the probe knows: give labelled texts, or --circuit"
        )
    if circuit is None:
        return CircuitError(f"no circuit for --conditions {','.join(settings.conditions)}: give --circuit")
    return OptionError("nothing to measure: give --off-after below --max-tokens, or further --conditions")


def _steering(reader: Reader, circuit: Circuit, settings: Persisting) -> Steering:
    """Raises: CircuitError where the circuit is of another model; EmotionError where it would be too strong."""
    with_experts = any(kind == "experts" for kind, _ in circuit.sites())
    decoder = find_decoder(reader.loaded.network, experts=True) if with_experts else reader.decoder
    if not is_of(circuit, decoder):
        raise CircuitError(f"the circuit is of another model ({circuit.spec.model.id}): give this model's")
    steering = Steering(reader.loaded.network, circuit, settings.strength)
    for name in _emotions(reader, circuit, settings):
        steering.emotion(Way("", "generation"), name)
    return steering


def _emotions(reader: Reader, circuit: Circuit, settings: Persisting) -> tuple[str, ...]:
    """Raises: OptionError."""
    both = tuple(name for name in circuit.names if name in reader.labels)
    if not both:
        raise OptionError(f"the probe reads none of the circuit's emotions ({', '.join(circuit.names)})")
    if unknown := [name for name in settings.emotions if name not in both]:
        raise OptionError(f"--emotions: no {', '.join(unknown)}; circuit and probe have {', '.join(both)}")
    return settings.emotions or both
