"""Finding, refining and validating a circuit, by Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm_offline.api.opening import open_model
from emovllm_offline.api.results import Picture, Row
from emovllm_offline.data import examples, sev
from emovllm_offline.data.styles import DEFAULT_STYLES, load_style
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.discovery.parameters import Measurement, Parameters
from emovllm_offline.model.find import find_decoder
from emovllm_offline.refinement.settings import Training
from emovllm_offline.validation.plan import Plan, Settings
from emovllm_offline.validation.results import Validation


@dataclass(frozen=True, slots=True)
class Discovery:
    """A circuit, and all that was measured to find it."""

    circuit: Circuit
    findings: Findings

    def table(self) -> list[Row]:
        """Of each emotion: how many neurons and heads, and the layer whose MLP output matters most."""
        best = self.findings.importance[:, 1::2].argmax(1)
        return [
            {
                "emotion": name,
                "neurons": len(self.circuit.neurons[name]),
                "heads": len(self.circuit.heads[name]),
                **({"experts": len(self.circuit.experts[name])} if self.circuit.experts else {}),
                "most important MLP": int(best[self.findings.emotions.index(name)]),
            }
            for name in self.circuit.names
        ]

    def plot(
        self,
        what: Literal[
            "importance", "importance_by_alpha", "similarity", "similarity_by_emotion", "units", "overlap"
        ] = "importance",
    ) -> Picture:
        """importance of each sublayer, as a whole or for each size of the push; similarity of the directions of all
        sublayers, mean or by emotion; units of each layer; overlap of every two emotions' units.

        Raises: ValueError where importance was not measured for each size."""
        from emovllm_offline.validation import figures, sublayer_figures

        if what in ("units", "overlap"):
            return Picture.of(getattr(figures, what)(self.circuit))
        return Picture.of(getattr(sublayer_figures, what)(self.findings))


@dataclass(frozen=True, slots=True)
class Refinement:
    """A refined circuit. history: after each epoch, the first being before any, the held-out loss by emotion in nats
    per token."""

    circuit: Circuit
    history: list[dict[str, float]]

    def table(self) -> list[Row]:
        return [{"epoch": epoch, **losses} for epoch, losses in enumerate(self.history)]

    def plot(self) -> Picture:
        """The held-out loss of each emotion by epoch."""
        from emovllm_offline.reporting import plots

        with plots.figure(4.2) as drawing:
            axes = drawing.subplots()
            for index, name in enumerate(self.circuit.names):
                losses = [row[name] for row in self.history]
                axes.plot(losses, color=plots.colour(index), marker=plots.marker(index), label=name)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set(xlabel="epoch", ylabel="held-out loss (nats per token)")
            axes.legend(frameon=False)
        return Picture.of(drawing)


@dataclass(frozen=True, slots=True)
class Validated:
    """The sweeps over a circuit's units, beside those over random ones, and the probe of each layer."""

    validation: Validation

    def table(self) -> list[Row]:
        """Of each sweep: the largest k, what it changed the emotion's score by, what k random units did, and the ks at
        which the intervals of the two are apart."""
        return [
            {
                "mode": curve.mode,
                "kind": curve.kind,
                "site": curve.site,
                "emotion": curve.emotion,
                "k": curve.k[-1],
                "change": curve.mean[-1],
                "random": curve.random_mean[-1],
                "apart at": curve.separated(),
            }
            for curve in self.validation.curves
        ]

    def plot(
        self,
        what: Literal["sweep", "probe", "components"] = "sweep",
        mode: Literal["ablation", "enhancement"] = "enhancement",
        kind: Literal["neurons", "heads"] = "neurons",
    ) -> Picture:
        """mode, kind: which sweep."""
        from emovllm_offline.validation import figures

        return Picture.of(
            figures.sweep(self.validation, mode, kind) if what == "sweep" else getattr(figures, what)(self.validation)
        )


def discover(
    model: Any = None,
    tokenizer: Any = None,
    *,
    data: str | Path = sev.DEFAULT,
    styles: Sequence[str | Path] = DEFAULT_STYLES,
    parameters: Parameters = Parameters(),
    limit: int | None = None,
    batch_size: int = 32,
    work: str | Path | None = None,
) -> Discovery:
    """Finds the emotion circuit of a model (arXiv 2510.11328, sections 3 to 6).

    model, tokenizer: a Hugging Face causal language model with its tokenizer; or a folder or Hugging Face id, or None
        for the default model, and no tokenizer.
    data: `sev-small`, `sev`, or a file of scenario-events; limit: only its first scenarios.
    styles: how emotions are asked for: names of packaged styles, or files. parameters.extract: in which states emotions
        are compared; `comprehension` reads the styles' replies. work: folder from which it resumes.
    Raises: EmovllmError, whose subclass tells what cannot be used.
    """
    from emovllm_offline.discovery.assembly import assemble
    from emovllm_offline.discovery.discover import measure_until

    opened = open_model(model, tokenizer)
    decoder = find_decoder(opened.network, parameters.experts)
    chosen = [load_style(style) for style in styles]
    records = sev.load_sev(data)[:limit]
    measurement = Measurement(batch_size=batch_size, work=None if work is None else Path(work), progress=True)
    findings = measure_until("importance", decoder, opened.tokenizer, records, chosen, parameters, measurement)
    assert findings is not None
    provenance = {"dataset": {"sha256": sev.digest(records), "scenarios": len(records)}}
    return Discovery(assemble(decoder, findings, opened.public_id, {}, parameters, provenance), findings)


def refine(
    circuit: Circuit | str | Path,
    model: Any = None,
    tokenizer: Any = None,
    *,
    replies: str | Path = examples.DEFAULT,
    style: str | Path = DEFAULT_STYLES[0],
    training: Training = Training(),
    limit: int | None = None,
) -> Refinement:
    """Fits a circuit's difference vectors to replies that show its emotions.

    circuit: one that `discover` returned, or a folder or Hugging Face repository id. model, tokenizer: as in
        `discover`.
    replies: the packaged ones, or a file of them; limit: only the first.
    Raises: EmovllmError.
    """
    from emovllm_offline.refinement.refine import Prompts
    from emovllm_offline.refinement.refine import refine as fit

    opened = open_model(model, tokenizer)
    decoder = find_decoder(opened.network)
    given = circuit if isinstance(circuit, Circuit) else load_circuit(circuit)
    lines = examples.load_examples(replies)[:limit]
    examples.require_emotions(lines, given.names)
    refined, history = fit(
        decoder, opened.tokenizer, given, lines, training, Prompts(style=load_style(style)), progress=True
    )
    return Refinement(refined, history)


def validate(
    discovery: Discovery | Findings,
    model: Any = None,
    tokenizer: Any = None,
    *,
    out: str | Path,
    data: str | Path = "sev-test",
    styles: Sequence[str | Path] = DEFAULT_STYLES,
    plan: Plan = Plan(),
    limit: int | None = None,
) -> Validated:
    """Tests the units that discovery found: ablated and enhanced beside random ones, and a probe in each layer.

    discovery: what `discover` returned; the data must be other than that. model, tokenizer, styles, limit: as there.
    out: folder of the results, from which an interrupted validation resumes.
    Raises: EmovllmError.
    """
    from emovllm_offline.validation.validate import validate as sweep

    opened = open_model(model, tokenizer)
    decoder = find_decoder(opened.network)
    findings = discovery.findings if isinstance(discovery, Discovery) else discovery
    chosen = [load_style(style) for style in styles]
    records = sev.load_sev(data)[:limit]
    return Validated(
        sweep(decoder, opened.tokenizer, findings, records, chosen, out, Settings(plan=plan), progress=True)
    )
