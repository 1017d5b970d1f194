"""Probes of a model's hidden states, by Hugging Face."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emovllm.probe import Probe
from emovllm_offline.api.opening import open_model
from emovllm_offline.api.results import Picture, Row
from emovllm_offline.model.find import find_decoder
from emovllm_offline.reading.results import Results
from emovllm_offline.reading.settings import Fitting, Reading
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
