"""Probes of a model's hidden states, by Hugging Face."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emovllm.circuit import Circuit
from emovllm.probe import Probe, load_probe
from emovllm_offline.api.opening import open_model
from emovllm_offline.api.results import Picture, Row
from emovllm_offline.data import sev
from emovllm_offline.model.find import find_decoder
from emovllm_offline.reading import persist
from emovllm_offline.reading.lasted import Persistence
from emovllm_offline.reading.reader import Reader
from emovllm_offline.reading.results import Results
from emovllm_offline.reading.settings import Fitting, Persisting, Reading
from emovllm_offline.reading.shift import load_users
from emovllm_offline.reading.train import ProbeData, Settings, Trained, save, train


@dataclass(frozen=True, slots=True)
class ProbeTraining:
    """Probes of all layers, and how well each tells its labels on texts that it did not learn from."""

    probe: Probe
    results: Results

    def table(self) -> list[Row]:
        """Of each layer: macro F1 on the test texts with its interval, and that of the same fit to shuffled labels."""
        return [
            {
                "layer": of.layer,
                "depth": of.depth,
                "F1": of.test.f1.value,
                "low": of.test.f1.low,
                "high": of.test.f1.high,
                "shuffled labels": of.test.control.value,
                "chosen": of.layer == self.results.layer,
            }
            for of in self.results.layers
        ]

    def plot(self, what: Literal["depth", "confusion"] = "depth") -> Picture:
        """depth: macro F1 over relative depth, beside its control; confusion at the chosen layer."""
        from emovllm_offline.reading import report

        return Picture.of(getattr(report, f"{what}_figure")(self.results))

    def save(self, out: str | Path) -> None:
        """Writes what `emovllm probe train` does: probe.safetensors, results.json and the report."""
        save(Trained(self.probe, self.results), Path(out))


def train_probe(
    model: Any = None,
    tokenizer: Any = None,
    *,
    data: str | Path | ProbeData,
    reading: Reading = Reading(),
    fitting: Fitting = Fitting(),
    work: str | Path | None = None,
) -> ProbeTraining:
    """Trains a linear probe of each layer's hidden states on labelled texts (arXiv 2510.04064).

    model, tokenizer: as in `discover`. data: a file of texts, of which some are held out, or several with their parts.
    reading: which states of a text count. fitting: how probes are fitted to them.
    work: folder for the states, from which an interrupted training resumes; a temporary one by default.
    Raises: EmovllmError.
    """
    corpus = (data if isinstance(data, ProbeData) else ProbeData(Path(data))).load(fitting)
    opened = open_model(model, tokenizer)
    decoder = find_decoder(opened.network)
    settings = Settings(reading=reading, fitting=fitting)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary if work is None else work)
        trained = train(decoder, opened.tokenizer, corpus, folder, settings, model_id=opened.public_id)
    return ProbeTraining(trained.probe, trained.results)


@dataclass(frozen=True, slots=True)
class Persisted:
    """For how many tokens of a reply an emotion can be read in the states that write it, in each condition."""

    results: Persistence

    def table(self) -> list[Row]:
        """Of each condition and token: median, mean, control, and how far the mean lies above it with its interval."""
        return [
            {
                "condition": of.name,
                "token": at.token,
                "median": at.median,
                "mean": at.mean.value,
                "control": at.control.value,
                "excess": at.excess.value,
                "low": at.excess.low,
                "high": at.excess.high,
                "not ended": at.going,
            }
            for of in self.results.conditions
            for at in of.tokens
        ]

    def plot(self) -> Picture:
        """Median and band over the tokens."""
        from emovllm_offline.reading import persist_report

        return Picture.of(persist_report.curve_figure(self.results))

    def save(self, out: str | Path) -> None:
        """Writes what `emovllm probe persist` does: persist.json and the report."""
        from emovllm_offline.reading.persist_report import write_report

        write_report(self.results, Path(out))


def measure_persistence(
    model: Any = None,
    tokenizer: Any = None,
    *,
    probe: Probe | str | Path,
    data: str | Path,
    circuit: Circuit | str | Path | None = None,
    settings: Persisting = Persisting(),
    work: str | Path | None = None,
) -> Persisted:
    """Measures for how long the emotion that a reply opens with can be read (arXiv 2510.04064).

    model, tokenizer: as in `discover`. data: labelled texts, which are users' messages, or a packaged set of scenarios.
    circuit: whose emotions replies open with, beside those of the messages; by default that of the default model, and
    of others none. settings: how replies are made.
    work: folder from which an interrupted run resumes; by default that of `settings`, or a temporary one.
    Raises: EmovllmError.
    """
    texts = load_users(str(data))
    if not isinstance(circuit, Circuit):
        named = model is None or isinstance(model, str | Path)
        known = (None if model is None else str(model)) if named else ""
        circuit = persist.circuit_of(known, None if circuit is None else str(circuit))
    reader = Reader.of(open_model(model, tokenizer), probe if isinstance(probe, Probe) else load_probe(probe))
    users = persist.users_of(texts, str(data) in sev.PACKAGED, reader.labels, settings)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(work or settings.work or temporary)
        return Persisted(persist.measure(reader, users, circuit, folder, persist.Settings(settings)))
