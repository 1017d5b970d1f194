"""A probe's reading beside the model's own answer, on the same labelled texts: `emovllm probe compare`.

In the work folder: what the probe read (logits.safetensors), and what the model answered (zero-shot.jsonl).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from emovllm.spec import Frozen
from emovllm_offline.data.texts import load_texts
from emovllm_offline.intervals import by_group
from emovllm_offline.model.load import versions
from emovllm_offline.model.options import ModelOptions
from emovllm_offline.model.spec import model_size
from emovllm_offline.reading.chosen import Chosen, draw_texts, readable
from emovllm_offline.reading.prompts import reads_of
from emovllm_offline.reading.reader import Reader
from emovllm_offline.reading.results import Figure
from emovllm_offline.reading.scores import McNemar, Resamples
from emovllm_offline.reading.settings import Measuring
from emovllm_offline.reading.zero_shot import Answers, ask
from emovllm_offline.storage.lock import forget
from emovllm_offline.storage.places import work_folder
from emovllm_offline.storage.results_file import ResultsFile

LOGITS = "logits.safetensors"
PROBE, ZERO_SHOT = "probe", "zero-shot"
# Other ways to read the model's answers, which show what the choice of the first decides.
VARIANTS: dict[str, dict[str, Any]] = {
    ZERO_SHOT: {},
    "zero-shot, prior left in": {"prior": False},
    "zero-shot, labels forward": {"directions": (0,)},
    "zero-shot, labels backward": {"directions": (1,)},
}


class Split(Frozen):
    """Texts that the probe alone is right about, that the other alone is, and McNemar's exact p."""

    probe: int
    other: int
    p: float


class Teller(Frozen):
    """One way to tell the labels. by_label: F1 of each; None of one that neither occurs nor is told.

    ahead: by how much the probe's macro F1 is higher, on the same resamples, and split: where one alone is right; None
    of the probe itself.
    """

    name: str
    f1: Figure
    accuracy: Figure
    by_label: dict[str, Figure | None]
    ahead: Figure | None = None
    split: Split | None = None


class Compared(ResultsFile):
    """All of `compare.json`. tellers: the probe, the model asked, and how else its answers may be read.

    texts: of each label. equal: the share of texts that the model tells the same with the labels listed either way.
    """

    FILE = "compare.json"

    format: Literal["emovllm-probe-compare"] = "emovllm-probe-compare"
    format_version: Literal[1] = 1
    model: str
    digest: str
    layer: int
    texts: dict[str, int]
    groups: int
    equal: float
    tellers: tuple[Teller, ...]
    about: dict[str, Any]

    def of(self, name: str) -> Teller:
        return next(teller for teller in self.tellers if teller.name == name)


@dataclass(frozen=True, slots=True)
class Settings:
    """How they are compared. command: as provenance tells it."""

    measuring: Measuring = field(default_factory=Measuring)
    loading: ModelOptions = field(default_factory=ModelOptions)
    command: str = ""


def run(model: str | None, probe: Path, data: Path, out: Path, settings: Settings) -> tuple[Compared, Reader]:
    """Loads what it takes, and measures. Raises: EmovllmError, OSError."""
    texts = load_texts(data)  # what fails at once, before the model is loaded
    reader = Reader.load(model, probe, settings.loading)
    measuring = settings.measuring
    drawn, left_out = draw_texts(texts, reader.labels, measuring.limit, measuring.seed)
    reads = reads_of(
        reader.loaded.tokenizer, [text.text for text in drawn], reader.probe.spec.pooling, chat=reader.chat
    )
    chosen = readable(drawn, reads, reader.decoder.most_tokens(measuring.max_tokens), left_out)
    return compare(reader, chosen, measuring.work or work_folder(out), settings), reader


def compare(
    reader: Reader, chosen: Chosen, work: Path, settings: Settings = Settings(), *, shown: bool = True
) -> Compared:
    """Raises: CheckpointError, StoredError, PromptError, ActivationError, OSError."""
    measuring = settings.measuring
    if measuring.fresh:
        forget(work)
    of_texts = {"texts": chosen.digest()}
    logits = reader.logits(chosen.reads, work / LOGITS, of_texts, tokens=measuring.batch_tokens, shown=shown)
    texts = [text.text for text in chosen.texts]
    answers = ask(reader.loaded, reader.labels, texts, work, {**reader.inputs(), **of_texts}, shown)
    about = {
        **({"command": settings.command} if settings.command else {}),
        "data": {"sha256": chosen.digest(), "left out": chosen.left_out},
        "pooling": reader.probe.spec.pooling,
        "chat": reader.chat,
        "seed": measuring.seed,
        "probe's weights away": reader.distance,
        "size": model_size(reader.decoder),
        "dtype": reader.inputs()["dtype"],
        "versions": versions(),
    }
    return conclude(reader, chosen, logits[:, reader.best].argmax(1), answers, about)


def conclude(reader: Reader, chosen: Chosen, read: np.ndarray, answers: Answers, about: Mapping[str, Any]) -> Compared:
    """read: what the probe tells each text as, [texts]."""
    labels, seed = reader.labels, about["seed"]
    truth = chosen.label(labels)
    resamples = Resamples(truth, chosen.groups, len(labels), seed)
    counts = np.bincount(truth, minlength=len(labels))
    frequent = int(counts.argmax())
    told = {PROBE: read, **{name: answers.told(**how) for name, how in VARIANTS.items()}}
    told[f"always {labels[frequent]}"] = np.full(len(truth), frequent)

    def teller(name: str, told: np.ndarray) -> Teller:
        compared, right = resamples.compare(read, told), told == truth
        split = McNemar.of(read == truth, right)
        by_label = [None if one is None else Figure.of(one) for one in resamples.by_label(told)]
        return Teller(
            name=name,
            f1=Figure.of(compared.control),
            accuracy=Figure.of(by_group(right, chosen.groups, seed)),
            by_label=dict(zip(labels, by_label, strict=True)),
            ahead=None if name == PROBE else Figure.of(compared.selectivity),
            split=None if name == PROBE else Split(probe=split.one, other=split.other, p=split.p),
        )

    return Compared(
        model=reader.loaded.public_id,
        digest=reader.probe.digest,
        layer=reader.probe.spec.layer,
        texts=dict(zip(labels, counts.tolist(), strict=True)),
        groups=len(set(chosen.groups)),
        equal=float((answers.told((0,)) == answers.told((1,))).mean()),
        tellers=tuple(teller(name, of_texts) for name, of_texts in told.items()),
        about=dict(about),
    )
