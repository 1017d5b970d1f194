"""Training probes of a model's hidden states, from labelled texts to the folder of a probe (arXiv 2510.04064).

In the work folder: states.f32 with states.json, the states of all texts after every layer, and probes.safetensors, the
fits of the layers that are done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emovllm.circuit_files import load_circuit
from emovllm.errors import ProbeError
from emovllm.probe import Probe, ProbeSpec, save_probe
from emovllm.spec import ModelSpec
from emovllm_offline.data.texts import load_texts
from emovllm_offline.model.decoder import Decoder, type_name
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import load, versions
from emovllm_offline.model.options import ModelOptions
from emovllm_offline.model.spec import model_fingerprint, model_size, model_spec
from emovllm_offline.reading.corpus import Corpus, corpus_of, require_enough
from emovllm_offline.reading.layers import Probes, fit_layers, shuffled_within_groups
from emovllm_offline.reading.prompts import Read, reads_of, unread
from emovllm_offline.reading.report import write_report
from emovllm_offline.reading.results import Results, by_label, measure
from emovllm_offline.reading.settings import Fitting, Reading
from emovllm_offline.reading.states import order_of, read_states
from emovllm_offline.storage.lock import forget
from emovllm_offline.storage.places import work_folder


@dataclass(frozen=True, slots=True)
class Trained:
    """A probe, and how well it tells its labels."""

    probe: Probe
    results: Results


@dataclass(frozen=True, slots=True)
class ProbeData:
    """The files that a probe is trained on. dev, test: held out of `data` where they are None. labels: the only ones
    that count, or all. limit: of each file about so many texts."""

    data: Path
    dev: Path | None = None
    test: Path | None = None
    labels: tuple[str, ...] = ()
    limit: int | None = None

    def load(self, fitting: Fitting) -> Corpus:
        """Raises: DataError, also where a label has too few texts."""
        data, dev, test = ([] if path is None else load_texts(path) for path in (self.data, self.dev, self.test))
        corpus = corpus_of(
            data, dev, test, labels=self.labels, limit=self.limit, held_out=fitting.held_out, seed=fitting.seed
        )
        require_enough(corpus)
        return corpus


@dataclass(frozen=True, slots=True)
class Settings:
    """How probes are trained. work: folder for the states. command: as provenance tells it."""

    reading: Reading = field(default_factory=Reading)
    fitting: Fitting = field(default_factory=Fitting)
    loading: ModelOptions = field(default_factory=ModelOptions)
    work: Path | None = None
    fresh: bool = False
    command: str = ""


def run(model: str | None, data: ProbeData, out: Path, settings: Settings, into: Path | None = None) -> Trained:
    """`emovllm probe train`: loads model and texts, and writes probe.safetensors, results.json and the report.

    into: a circuit's folder that gets the probe too. Raises: EmovllmError, OSError.
    """
    # What can fail quickly does so before the model is loaded.
    corpus = data.load(settings.fitting)
    circuit = None if into is None else _circuits_model(into)
    loaded = load(model, settings.loading.dtype, settings.loading.device)
    decoder = find_decoder(loaded.network)
    if circuit is not None:
        require_same(circuit, model_spec(decoder, loaded.public_id), str(into))
    work = settings.work or work_folder(out)
    trained = train(decoder, loaded.tokenizer, corpus, work, settings, model_id=loaded.public_id)
    save(trained, out)
    if into is not None:
        save_probe(trained.probe, into)
    return trained


def train(
    decoder: Decoder,
    tokenizer: Any,
    corpus: Corpus,
    work: Path,
    settings: Settings = Settings(),
    *,
    model_id: str = "",
    shown: bool = True,
) -> Trained:
    """Trains a probe for each layer. Raises: DataError, PromptError, ActivationError, CheckpointError, OSError."""
    reading, fitting = settings.reading, settings.fitting
    if settings.fresh:
        forget(work)
    corpus, texts = readable(decoder, tokenizer, corpus, reading)
    require_enough(corpus)
    how = {"pooling": reading.pooling, "chat": reading.chat}
    with read_states(decoder, texts, work, how, tokens=reading.batch_tokens, shown=shown) as planes:
        probes = fit_layers(
            planes, order_of(texts), corpus, fitting, work, inputs=planes.settings, device=decoder.device, shown=shown
        )
    spec = model_spec(decoder, model_id)
    about = {
        **({"command": settings.command} if settings.command else {}),
        "data": corpus.about(),
        "reading": asdict(reading),
        "fitting": asdict(fitting),
        "shuffled": "within groups" if _within_groups(corpus) else "among all texts",
        "size": model_size(decoder),
        "dtype": type_name(decoder.dtype),
        "versions": versions(),
    }
    return conclude(probes, corpus, spec, about, model_fingerprint(decoder), reading)


def readable(decoder: Decoder, tokenizer: Any, corpus: Corpus, reading: Reading) -> tuple[Corpus, list[Read]]:
    """The texts that the model can read, as it reads them. Raises: PromptError."""
    texts = reads_of(tokenizer, corpus.texts, reading.pooling, reading.chat)
    most = decoder.most_tokens(reading.max_tokens)
    reasons = [unread(text, most) for text in texts]
    read = [text for text, reason in zip(texts, reasons, strict=True) if reason is None]
    return corpus.without(reasons), read


def conclude(
    probes: Probes,
    corpus: Corpus,
    spec: ModelSpec,
    about: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    reading: Reading,
) -> Trained:
    """The probe of the fits, and what was measured."""
    measured = measure(probes, corpus, about["fitting"]["seed"])
    macro = {
        str(of.layer): {"dev": of.dev.f1.value, "test": of.test.f1.value, "control": of.test.control.value}
        for of in measured.layers
    }
    probe = Probe(
        ProbeSpec(
            model=spec,
            labels=corpus.labels,
            layers=tuple(range(len(measured.layers))),
            layer=measured.layer,
            pooling=reading.pooling,
            provenance={**about, "macro F1": macro},
        ),
        **{name: probes[name] for name in ("mean", "scale", "weight", "bias")},
        fingerprint=dict(fingerprint),
    )
    matrix, labels = by_label(probes, corpus, measured.layer)
    results = Results(
        model=spec.id,
        digest=probe.digest,
        layer=measured.layer,
        labels=corpus.labels,
        layers=measured.layers,
        by_label=labels,
        confusion=tuple(map(tuple, matrix.tolist())),
        about=dict(about),
    )
    return Trained(probe, results)


def save(trained: Trained, out: Path) -> None:
    """probe.safetensors, results.json, report.md, report.html. Raises: OSError."""
    save_probe(trained.probe, out)
    trained.results.save(out)
    write_report(trained.results, out)


def _circuits_model(folder: Path) -> ModelSpec:
    """Raises: ProbeError, CircuitError."""
    if not folder.is_dir():
        raise ProbeError(f"{folder}: no folder; give --into the folder of a circuit")
    return load_circuit(folder).spec.model


def require_same(circuit: ModelSpec, model: ModelSpec, place: str) -> None:
    """Raises: ProbeError where a circuit is of another model."""
    # Experts are the circuit's choice.
    theirs, ours = (spec.model_dump(exclude={"layers"}) for spec in (circuit, model))
    if other := [f"{name} {theirs[name]} there, {ours[name]} here" for name in ours if theirs[name] != ours[name]]:
        raise ProbeError(
            f"{place}: the circuit is of another model ({'; '.join(other)}): leave out --into, or give another"
        )


def _within_groups(corpus: Corpus) -> bool:
    train = corpus.of("train")
    return shuffled_within_groups(corpus.label[train], corpus.group[train])
