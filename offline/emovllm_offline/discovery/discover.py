"""Discovering a model's emotion circuit, from prompts to the circuit folder (arXiv 2510.11328, sections 3 to 6).

The stages, in order, each resumable and each with a file in the work folder:
    activations   activations.safetensors   streaming means of every quantity
    heads         heads.safetensors         only with the normed head metric
    importance    importance.safetensors    sublayer importance, then findings.safetensors: all that was measured
    circuit       the circuit folder
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emovllm.circuit import Circuit
from emovllm.circuit_files import save_circuit
from emovllm.errors import CheckpointError, DiscoveryError, OptionError
from emovllm_offline.data import sev
from emovllm_offline.data.prompts import has_template
from emovllm_offline.data.styles import Style, common_emotions, load_style
from emovllm_offline.discovery import directions
from emovllm_offline.discovery.assembly import assemble
from emovllm_offline.discovery.elicit import load_accepted
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.discovery.groups import extracted, groups
from emovllm_offline.discovery.importance import gradient_importance, sublayer_importance
from emovllm_offline.discovery.measure import (
    conclude,
    measure_activations,
    measure_importance,
    measure_normed_heads,
    neutral_prompts,
    unit_contributions,
)
from emovllm_offline.discovery.parameters import Measurement, Parameters, Settings, Stage
from emovllm_offline.discovery.removal import norms_digest
from emovllm_offline.discovery.routed import with_experts
from emovllm_offline.discovery.survival import Accepted
from emovllm_offline.model.decoder import Decoder, experts_digest, type_name, weights_digest
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import load, versions
from emovllm_offline.storage.checkpoint import Checkpoint
from emovllm_offline.storage.lock import forget
from emovllm_offline.storage.places import work_folder


def discover(
    model: Any,
    tokenizer: Any,
    records: Sequence[sev.Record],
    styles: Sequence[Style],
    *,
    model_id: str = "",
    parameters: Parameters = Parameters(),
    measurement: Measurement = Measurement(),
) -> Circuit:
    """Discovers the circuit of a Hugging Face causal language model, of recommended strength 1.0 and maximal 2.0.

    Raises: UnsupportedModelError, ActivationError, PromptError, StyleError, DiscoveryError, AssemblyError.
    """
    decoder = find_decoder(model, parameters.experts)
    findings = measure(decoder, tokenizer, records, styles, parameters, measurement)
    return assemble(decoder, findings, model_id, {}, parameters, {})


def measure(
    decoder: Decoder,
    tokenizer: Any,
    records: Sequence[sev.Record],
    styles: Sequence[Style],
    parameters: Parameters,
    measurement: Measurement = Measurement(),
) -> Findings:
    """Everything that needs the model's forward: sections 2 to 6 of the method. Raises: as `discover`."""
    findings = measure_until("importance", decoder, tokenizer, records, styles, parameters, measurement)
    assert findings is not None
    return findings


def measure_until(
    stage: Stage,
    decoder: Decoder,
    tokenizer: Any,
    records: Sequence[sev.Record],
    styles: Sequence[Style],
    parameters: Parameters,
    measurement: Measurement = Measurement(),
    accepted: Accepted | None = None,
) -> Findings | None:
    """Measures up to a stage.

    accepted: what was elicited (`survival.accepted`); everything by default.
    Returns: the findings, or None before the stage `importance`.
    Raises: DiscoveryError, CheckpointError, and as `discover`.
    """
    batch_size, seed, progress = measurement.batch_size, measurement.seed, measurement.progress
    work = measurement.work
    items = sev.expand(records)
    found = groups(items, styles, accepted)
    if not found:
        raise DiscoveryError("no scenario-event is left to measure")
    steps = extracted(found, parameters.extract)
    inputs = {
        "model": weights_digest(decoder),
        "data or style": _digest(group.describe() for group in found),
        "batch size": batch_size,
    }
    if parameters.extract != "generation":  # which is what was measured before there was a choice
        inputs["extract"] = parameters.extract
        if accepted is not None:
            inputs["replies"] = _digest(str(group.replies) for group in steps)

    def checkpoint(name: str, more: Mapping[str, Any]) -> Checkpoint:
        return Checkpoint(None if work is None else work / f"{name}.safetensors", {**inputs, **more})

    # What was measured before contributions went through these norms lacks the entry, and is not taken up.
    norms = norms_digest(decoder)
    through = {} if norms is None else {"norms of the sublayers' output": norms}
    routed = experts_digest(decoder)
    experts = {} if routed is None else {"routed experts": routed}
    kept = checkpoint("activations", {**through, **experts})
    means = measure_activations(decoder, tokenizer, steps, batch_size, kept, progress)
    if stage == "activations":
        return None
    attn = directions.emotion_directions(means.difference("attn"))
    mlp = directions.emotion_directions(means.difference("mlp"))
    neurons, heads = unit_contributions(decoder, means, attn, mlp)
    if parameters.head_metric == "normed":
        heads = measure_normed_heads(
            decoder, tokenizer, steps, attn, batch_size, checkpoint("heads", through), progress
        )
    if stage == "heads":
        return None
    sublayers = directions.interleave(attn, mlp)
    chosen = {
        "seed": seed,
        "importance": parameters.importance,
        "alphas": list(parameters.alphas),
        "band": list(parameters.band),
        "importance prompts": parameters.importance_prompts,
        "neutral prompt": styles[0].neutral.model_dump_json(),
    }
    prompts = neutral_prompts(tokenizer, items, styles[0], parameters, seed)
    measured = measure_importance(
        decoder,
        prompts,
        sublayers,
        _reference(decoder, sublayers, parameters),
        parameters,
        batch_size,
        checkpoint("importance", chosen),
        progress,
    )
    findings = conclude(common_emotions(styles), means, attn, mlp, neurons, heads, measured)
    findings = replace(with_experts(findings, decoder, means), extract=parameters.extract)
    if work is not None:
        findings.save(work)
    return findings


def gradient_agreement(
    decoder: Decoder,
    tokenizer: Any,
    records: Sequence[sev.Record],
    style: Style,
    findings: Findings,
    parameters: Parameters,
) -> float:
    """Spearman's correlation of the gradient's importance with the exact one, on one neutral prompt."""
    from scipy.stats import spearmanr

    sublayers = directions.interleave(findings.attn_directions, findings.mlp_directions)
    reference = _reference(decoder, sublayers, parameters)
    prompt = neutral_prompts(tokenizer, sev.expand(records), style, parameters, 0)[0]
    exact = sublayer_importance(decoder, [prompt], sublayers, reference, findings.sigma, parameters.alphas).mean(-1)
    gradient = gradient_importance(decoder, prompt, sublayers, reference)
    return float(spearmanr(exact.ravel(), gradient.ravel()).statistic)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _reference(decoder: Decoder, sublayers: np.ndarray, parameters: Parameters) -> np.ndarray:
    band = directions.band_layers(len(decoder.layers), parameters.band)
    return directions.reference_direction(sublayers, band, decoder.present)


def run(
    model: str | None,
    out: str | Path,
    settings: Settings = Settings(),
    parameters: Parameters = Parameters(),
    *,
    command: str = "",
    progress: bool = True,
) -> Circuit | None:
    """`emovllm discover`: loads the model and the data, discovers the circuit and writes its folder.

    What was measured is kept in `<out>.work` by default; what is there is used, unless `fresh`.
    Returns: None where it stopped before the circuit.
    Raises: as `discover`, and DataError, CheckpointError, FindingsError, DefaultModelError, CircuitError, OSError.
    """

    # What can fail quickly does so before the model is loaded.
    chosen = [load_style(style) for style in settings.style]
    emotions = common_emotions(chosen)
    strengths = _strengths(emotions, settings)
    records = sev.load_sev(settings.data)[: settings.limit]
    if not records:
        raise DiscoveryError(f"{settings.data} holds no scenario")
    accepted = None if settings.replies is None else load_accepted(settings.replies, records, chosen)
    extracted(groups(sev.expand(records), chosen, accepted), parameters.extract)
    place = settings.measurement.work or work_folder(out)
    measurement = replace(settings.measurement, work=place, progress=progress)
    stage = settings.stage
    if settings.fresh:
        forget(place)
    torch.manual_seed(measurement.seed)
    loaded = load(model, settings.loading.dtype, settings.loading.device)
    decoder, tokenizer = find_decoder(loaded.network, parameters.experts), loaded.tokenizer
    if stage == "circuit":
        findings: Findings | None = Findings.load(place)
    else:
        until = stage or "importance"
        findings = measure_until(until, decoder, tokenizer, records, chosen, parameters, measurement, accepted)
    if findings is None or stage == "importance":
        return None
    findings.require_norms(decoder)
    findings.require_experts(decoder)
    findings.require_extraction(parameters.extract)
    if findings.emotions != emotions or findings.neurons.shape[1] != len(decoder.layers):
        raise CheckpointError(f"{place}: its findings are of another model or style; start anew with --fresh")
    provenance = {
        "command": command,
        "dataset": {"sha256": sev.digest(records), "scenarios": len(records)},
        "styles": [{"name": style.name, "sha256": style.digest()} for style in chosen],
        "parameters": asdict(parameters),
        "dtype": type_name(decoder.dtype),
        "seed": measurement.seed,
        "versions": versions(),
    }
    if not has_template(tokenizer):
        provenance["prompts"] = "plain text, without a chat template"
    if accepted is not None:
        provenance["filtered by a judge"] = True
    if parameters.importance == "gradient":
        agreement = gradient_agreement(decoder, tokenizer, records, chosen[0], findings, parameters)
        provenance["gradient's rank correlation with exact importance"] = round(agreement, 4)
    circuit = assemble(decoder, findings, loaded.public_id, strengths, parameters, provenance)
    save_circuit(circuit, out)
    return circuit


def _strengths(emotions: Sequence[str], settings: Settings) -> dict[str, tuple[float, float]]:
    recommended, maximal = _lambdas("recommended", settings.recommended), _lambdas("maximal", settings.maximal)
    for name, values in (("recommended", recommended), ("maximal", maximal)):
        unknown = sorted(set(values) - set(emotions) - {""})
        if unknown:
            raise DiscoveryError(f"--{name} names {', '.join(unknown)}; the emotions are {', '.join(emotions)}")
    out = {}
    for name in emotions:
        usual = recommended.get(name, recommended.get("", 1.0))
        largest = maximal.get(name, maximal.get("", 2 * usual))
        if not 0 < usual <= largest < float("inf"):
            raise DiscoveryError(f"{name}: strengths must be 0 < recommended <= maximal, got {usual} and {largest}")
        out[name] = (usual, largest)
    return out


def _lambdas(option: str, texts: Iterable[str]) -> dict[str, float]:
    """By emotion; the key "" stands for all others."""
    lambdas = {}
    for text in texts:
        emotion, _, value = text.rpartition("=")
        try:
            lambdas[emotion] = float(value)
        except ValueError:
            raise OptionError(f"--{option}: expected a number or EMOTION=NUMBER, got {text!r}") from None
    return lambdas
