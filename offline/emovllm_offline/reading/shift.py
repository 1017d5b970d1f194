"""How far system prompts move what a probe reads in the same messages: `emovllm probe prompts`.

In the work folder: what the probe read below each prompt (prompts.safetensors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from emovllm.probe import probabilities
from emovllm.spec import Frozen
from emovllm_offline.data import sev
from emovllm_offline.data.messages import load_messages
from emovllm_offline.data.system_prompts import load_system_prompts
from emovllm_offline.data.texts import Text, load_texts
from emovllm_offline.intervals import means_by_group
from emovllm_offline.model.load import versions
from emovllm_offline.model.options import ModelOptions
from emovllm_offline.model.spec import model_size
from emovllm_offline.reading.chosen import Chosen, readable
from emovllm_offline.reading.corpus import draw
from emovllm_offline.reading.in_chat import At, Chats
from emovllm_offline.reading.prompts import Read, unread
from emovllm_offline.reading.reader import Reader
from emovllm_offline.reading.results import Figure
from emovllm_offline.reading.settings import Measuring
from emovllm_offline.storage.lock import forget
from emovllm_offline.storage.places import work_folder
from emovllm_offline.storage.results_file import ResultsFile

LOGITS = "prompts.safetensors"


class AtLayer(Frozen):
    """One prompt at one layer, against none. changes: of each label's logit.

    beyond: by how much the logit of the emotion that the prompt names rises more than below the prompts that name
    others; None where it names none, or no other does.
    """

    layer: int
    changes: dict[str, Figure]
    beyond: Figure | None


class OfPrompt(Frozen):
    """probability, leads: of the named emotion at the probe's own layer, without the prompt and with it: its mean, and
    the share of the messages in which it is the likeliest; None where the prompt names none."""

    name: str
    text: str
    layers: tuple[AtLayer, ...]
    probability: tuple[float, float] | None
    leads: tuple[float, float] | None

    def at(self, layer: int) -> AtLayer:
        return next(of for of in self.layers if of.layer == layer)


class Shifts(ResultsFile):
    """All of `prompts.json`. at: where in the chat was read. layers: of the model."""

    FILE = "prompts.json"

    format: Literal["emovllm-probe-prompts"] = "emovllm-probe-prompts"
    format_version: Literal[1] = 1
    model: str
    digest: str
    layer: int
    of_layers: int
    labels: tuple[str, ...]
    at: At
    texts: int
    groups: int
    prompts: tuple[OfPrompt, ...]
    about: dict[str, Any]

    @property
    def named(self) -> list[OfPrompt]:
        """The prompts that name an emotion of the probe."""
        return [of for of in self.prompts if of.name in self.labels]


@dataclass(frozen=True, slots=True)
class Settings:
    """How it is measured. at: where in the chat; None for where the probe was trained. command: for provenance."""

    at: At | None = None
    measuring: Measuring = field(default_factory=Measuring)
    loading: ModelOptions = field(default_factory=ModelOptions)
    command: str = ""


def run(model: str | None, probe: Path, data: str, system: Sequence[str], out: Path, settings: Settings) -> Shifts:
    """Loads what it takes, and measures. Raises: EmovllmError, OSError."""
    texts = load_users(data)  # what fails at once, before the model is loaded
    reader = Reader.load(model, probe, settings.loading)
    prompts = load_system_prompts(system, reader.labels)
    measuring = settings.measuring
    drawn = draw(texts, measuring.limit, measuring.seed)
    return measure(reader, drawn, prompts, measuring.work or work_folder(out), settings)


def load_users(data: str) -> list[Text]:
    """Messages of users: a packaged data set, whose labels are the valences, or labelled texts. Raises: DataError."""
    if data not in sev.PACKAGED:
        return load_texts(data)
    return [Text(message.user, (message.valence,), message.group) for message in load_messages(data)]


def measure(
    reader: Reader,
    texts: Sequence[Text],
    prompts: Mapping[str, str],
    work: Path,
    settings: Settings = Settings(),
    *,
    shown: bool = True,
) -> Shifts:
    """Raises: DataError, CheckpointError, PromptError, ActivationError, OSError."""
    measuring = settings.measuring
    if measuring.fresh:
        forget(work)
    at = settings.at or ("reply" if reader.chat else "text")
    most = reader.decoder.most_tokens(measuring.max_tokens)
    chosen, reads = _below(reader, texts, prompts, at, most)
    given = {"texts": chosen.digest(), "prompts": dict(prompts), "at": at}
    logits = reader.logits(
        [read for below in reads for read in below],
        work / LOGITS,
        given,
        tokens=measuring.batch_tokens,
        shown=shown,
    ).reshape(len(reads), len(chosen.texts), len(reader.probe.spec.layers), len(reader.labels))
    return Shifts(
        model=reader.loaded.public_id,
        digest=reader.probe.digest,
        layer=reader.probe.spec.layer,
        of_layers=len(reader.decoder.layers),
        labels=reader.labels,
        at=at,
        texts=len(chosen.texts),
        groups=len(set(chosen.groups)),
        prompts=conclude(reader, logits, prompts, chosen.groups, measuring.seed),
        about={
            **({"command": settings.command} if settings.command else {}),
            "data": {"sha256": chosen.digest(), "left out": chosen.left_out},
            "pooling": reader.probe.spec.pooling,
            "seed": measuring.seed,
            "probe's weights away": reader.distance,
            "size": model_size(reader.decoder),
            "dtype": reader.inputs()["dtype"],
            "versions": versions(),
        },
    )


def _below(
    reader: Reader, texts: Sequence[Text], prompts: Mapping[str, str], at: At, most: int
) -> tuple[Chosen, list[tuple[Read, ...]]]:
    """The texts that can be read below each prompt, and none; and how they are, [prompts + 1][texts]."""
    pooling = reader.probe.spec.pooling
    reads = [
        [chats.read(text.text, at, pooling) for text in texts]
        for system in (None, *prompts.values())
        for chats in [Chats(reader.loaded.tokenizer, system)]
    ]
    # What is not read below one of them is left out of all: they are compared text by text.
    of_texts = [_hardest(of_text, most) for of_text in zip(*reads, strict=True)]
    kept = [place for place, read in enumerate(of_texts) if unread(read, most) is None]
    return readable(texts, of_texts, most, {}), [tuple(below[place] for place in kept) for below in reads]


def _hardest(reads: Sequence[Read], most: int) -> Read:
    """One that cannot be read, where there is one."""
    return next((read for read in reads if unread(read, most) is not None), reads[0])


def conclude(
    reader: Reader, logits: np.ndarray, prompts: Mapping[str, str], groups: Sequence[str], seed: int
) -> tuple[OfPrompt, ...]:
    """logits: [none, then prompts; texts; layers; labels]. What all labels have in common is taken off: it changes no
    probability."""
    labels, names = reader.labels, list(prompts)
    centred = logits - logits.mean(-1, keepdims=True)
    changes = centred[1:] - centred[0]
    read = probabilities(logits[:, :, reader.best])

    def of(place: int, name: str) -> OfPrompt:
        means = means_by_group(changes[place], groups, seed)
        label = labels.index(name) if name in labels else None
        others = [i for i, other in enumerate(names) if other in labels and other != name]
        beyond = None
        if label is not None and others:
            more = changes[place, :, :, label] - changes[others][..., label].mean(0)
            beyond = means_by_group(more, groups, seed)
        layers = tuple(
            AtLayer(
                layer=layer,
                changes={one: _figure(means, at, i) for i, one in enumerate(labels)},
                beyond=None if beyond is None else _figure(beyond, at),
            )
            for at, layer in enumerate(reader.probe.spec.layers)
        )
        both = read[[0, place + 1]]  # without the prompt, and with it
        return OfPrompt(
            name=name,
            text=prompts[name],
            layers=layers,
            probability=None if label is None else _pair(both[..., label]),
            leads=None if label is None else _pair(both.argmax(-1) == label),
        )

    return tuple(of(place, name) for place, name in enumerate(names))


def _figure(of: tuple[np.ndarray, np.ndarray, np.ndarray], *place: int) -> Figure:
    value, low, high = (float(one[place]) for one in of)
    return Figure(value=value, low=low, high=high)


def _pair(values: np.ndarray) -> tuple[float, float]:
    """values: [2, texts]."""
    return float(values[0].mean()), float(values[1].mean())
