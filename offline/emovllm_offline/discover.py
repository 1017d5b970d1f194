"""Discovering a model's emotion circuit, from prompts to the circuit folder (arXiv 2510.11328, sections 3 to 6)."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tqdm import tqdm

import emovllm
from emovllm.circuit import (
    Circuit,
    CircuitSpec,
    Components,
    EmotionSpec,
    ModelSpec,
    Scope,
)
from emovllm.default_model import DEFAULT_MODEL_ID, NAME, resolve_model
from emovllm_offline import contributions, data, directions
from emovllm_offline.activations import GroupMeans, collect
from emovllm_offline.allocation import NEURON_SHARE, PER_SUBLAYER, allocate
from emovllm_offline.decoder import Decoder, find_decoder, projection_weight
from emovllm_offline.findings import Findings
from emovllm_offline.importance import ALPHAS, residual_scale, sublayer_importance
from emovllm_offline.prompts import render
from emovllm_offline.styles import Style, common_emotions, load_style

DEFAULT_STYLES = ("fewshot",)


class DiscoveryError(ValueError):
    """Input from which no circuit can be made, and why."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What shapes a circuit besides the model, the data and the styles (arXiv 2510.11328's values by default)."""

    per_sublayer: float = PER_SUBLAYER
    neuron_share: float = NEURON_SHARE
    alphas: tuple[float, ...] = ALPHAS
    band: tuple[float, float] = directions.BAND
    importance_prompts: int = 8
    scope: Scope = "generation"


def discover(
    model: Any,
    tokenizer: Any,
    records: Sequence[data.Record],
    styles: Sequence[Style],
    *,
    model_id: str = "",
    strengths: Mapping[str, tuple[float, float]] | None = None,
    parameters: Parameters = Parameters(),
    batch_size: int = 32,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Circuit:
    """Discovers the circuit of a Hugging Face causal language model.

    strengths: (recommended, maximal) of an emotion, 1.0 and 2.0 for those not named.
    Raises: UnsupportedModelError, ActivationError, PromptError, StyleError, DiscoveryError.
    """
    decoder = find_decoder(model)
    findings = measure(decoder, tokenizer, records, styles, parameters, batch_size, seed, progress)
    return assemble(decoder, findings, model_id, strengths or {}, parameters, provenance or {})


def measure(
    decoder: Decoder,
    tokenizer: Any,
    records: Sequence[data.Record],
    styles: Sequence[Style],
    parameters: Parameters,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> Findings:
    """Everything that needs the model's forward: sections 2 to 6 of the method."""
    emotions = common_emotions(styles)
    items = data.expand(records)
    if not items:
        raise DiscoveryError("the data set is empty")
    means = GroupMeans(len(emotions))
    with tqdm(
        total=len(items) * len(styles), desc="activations", unit="group", disable=not progress, file=sys.stderr
    ) as bar:
        for index, item in enumerate(items):
            for style in styles:
                framed = [(e, frame) for e, name in enumerate(emotions) for frame in style.frames(name, index)]
                prompts = [render(tokenizer, frame, item.user, style.reply_tokens) for _, frame in framed]
                means.add(collect(decoder, prompts, batch_size), [e for e, _ in framed])
                bar.update()

    attn = directions.emotion_directions(means.difference("attn"))
    mlp = directions.emotion_directions(means.difference("mlp"))
    neurons, heads = _contributions(decoder, means, attn, mlp)
    sublayers = directions.interleave(attn, mlp)
    band = directions.band_layers(len(decoder.layers), parameters.band)
    reference = directions.reference_direction(sublayers, band)
    chosen = random.Random(seed).sample(items, min(parameters.importance_prompts, len(items)))
    neutral = [render(tokenizer, styles[0].neutral, item.user) for item in chosen]
    sigma = residual_scale(decoder, neutral, batch_size)
    importance = np.zeros((len(emotions), decoder.sublayers))
    for prompt in tqdm(neutral, desc="sublayer importance", unit="prompt", disable=not progress, file=sys.stderr):
        importance += sublayer_importance(
            decoder, [prompt], sublayers, reference, sigma, parameters.alphas, batch_size
        ) / len(neutral)
    return Findings(
        emotions, means.groups, attn, mlp, neurons, heads,
        directions.centred(means.difference("neurons")), directions.centred(means.difference("heads")),
        sigma, importance, directions.similarity(sublayers),
    )  # fmt: skip


def _contributions(
    decoder: Decoder, means: GroupMeans, attn: np.ndarray, mlp: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    neurons, heads = means.mean("neurons"), means.mean("heads")
    by_neuron, by_head = [], []
    for i, layer in enumerate(decoder.layers):
        down, out = (projection_weight(p).detach().double().cpu().numpy() for p in (layer.down_proj, layer.o_proj))
        by_neuron.append(contributions.neuron_contributions(neurons[:, i], down, mlp[:, i]))
        by_head.append(contributions.head_importance(heads[:, i], out, attn[:, i], decoder.num_heads))
    return np.stack(by_neuron, 1), np.stack(by_head, 1)


def assemble(
    decoder: Decoder,
    findings: Findings,
    model_id: str,
    strengths: Mapping[str, tuple[float, float]],
    parameters: Parameters,
    provenance: Mapping[str, Any],
) -> Circuit:
    """Chooses the units by the allocation (section 7) and makes the circuit."""
    unknown = sorted(set(strengths) - set(findings.emotions))
    if unknown:
        raise DiscoveryError(f"strengths name {', '.join(unknown)}; the emotions are {', '.join(findings.emotions)}")
    neurons, heads = {}, {}
    for e, name in enumerate(findings.emotions):
        shares = allocate(findings.importance[e], decoder.intermediate_size, decoder.num_heads,
                          parameters.per_sublayer, parameters.neuron_share)  # fmt: skip
        neurons[name] = _units(findings.neurons[e], shares.neurons, findings.mlp_delta[e])
        by_head = findings.attn_delta[e].reshape(len(decoder.layers), decoder.num_heads, decoder.head_dim)
        heads[name] = _units(findings.heads[e], shares.heads, by_head)
    config = decoder.model.config.get_text_config()
    spec = CircuitSpec(
        model=ModelSpec(
            id=model_id or type(decoder.model).__name__,
            architecture=type(decoder.model).__name__,
            num_hidden_layers=len(decoder.layers),
            hidden_size=decoder.hidden_size,
            intermediate_size=decoder.intermediate_size,
            num_attention_heads=decoder.num_heads,
            head_dim=decoder.head_dim,
            vocab_size=config.vocab_size,
        ),
        emotions=tuple(_emotion(name, strengths) for name in findings.emotions),
        scope=parameters.scope,
        provenance={**provenance, "groups": findings.groups},
    )

    def weight_of(kind: str, layer: int) -> np.ndarray:
        site = decoder.layers[layer]
        weight = projection_weight(site.down_proj if kind == "mlp" else site.o_proj)
        return weight.detach().float().cpu().numpy()

    return Circuit.fingerprinted(spec, neurons, heads, weight_of)


def _emotion(name: str, strengths: Mapping[str, tuple[float, float]]) -> EmotionSpec:
    if name not in strengths:
        return EmotionSpec(name=name)
    recommended, maximal = strengths[name]
    return EmotionSpec(name=name, recommended=recommended, maximal=maximal)


def _units(score: np.ndarray, counts: np.ndarray, delta: np.ndarray) -> Components:
    """The best `counts[l]` units of each layer by `score` [L, n], with their `delta` [L, n, ...], in index order."""
    chosen = [np.sort(np.argsort(-of_layer, kind="stable")[:k]) for of_layer, k in zip(score, counts, strict=True)]
    layer = np.repeat(np.arange(len(counts)), counts)
    index = np.concatenate(chosen)
    return Components(layer.astype(np.int32), index.astype(np.int32), delta[layer, index].astype(np.float32))


def run(
    model: str | None,
    data_path: str | Path | None,
    out: str | Path,
    styles: Sequence[str] = DEFAULT_STYLES,
    *,
    parameters: Parameters = Parameters(),
    dtype: str = "float32",
    device: str = "cpu",
    batch_size: int = 32,
    seed: int = 0,
    limit: int | None = None,
    recommended: Mapping[str, float] | None = None,
    maximal: Mapping[str, float] | None = None,
    keep_intermediate: str | Path | None = None,
    command: str = "",
    progress: bool = True,
) -> Circuit:
    """`emovllm discover`: loads the model and the data, discovers the circuit and writes its folder.

    recommended, maximal: per emotion; the key "" stands for all others. limit: use only the first scenarios.
    Raises: as `discover`, and DataError, DefaultModelError, CircuitError, OSError.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # What can fail quickly does so before the model is loaded.
    chosen = [load_style(style) for style in styles]
    emotions = common_emotions(chosen)
    strengths = _strengths(emotions, recommended or {}, maximal or {})
    records = data.load_sev(data_path or data.packaged_sev())[:limit]
    if not records:
        raise DiscoveryError(f"a limit of {limit} scenarios leaves no data")
    folder = resolve_model(model)
    torch.manual_seed(seed)
    transformers.logging.disable_progress_bar()
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    decoder = find_decoder(network)
    findings = measure(
        decoder, AutoTokenizer.from_pretrained(folder), records, chosen, parameters, batch_size, seed, progress
    )
    provenance = {
        "command": command,
        "dataset": {"sha256": data.digest(records), "scenarios": len(records)},
        "styles": [{"name": style.name, "sha256": style.digest()} for style in chosen],
        "parameters": asdict(parameters),
        "dtype": dtype,
        "seed": seed,
        "versions": {
            "emovllm": emovllm.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    circuit = assemble(decoder, findings, _model_id(folder), strengths, parameters, provenance)
    if keep_intermediate is not None:
        findings.save(Path(keep_intermediate))
    circuit.save(out)
    return circuit


def _strengths(
    emotions: Sequence[str], recommended: Mapping[str, float], maximal: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    for option, values in (("recommended", recommended), ("maximal", maximal)):
        unknown = sorted(set(values) - set(emotions) - {""})
        if unknown:
            raise DiscoveryError(f"{option} names {', '.join(unknown)}; the emotions are {', '.join(emotions)}")
    out = {}
    for name in emotions:
        usual = recommended.get(name, recommended.get("", 1.0))
        largest = maximal.get(name, maximal.get("", 2 * usual))
        if not 0 < usual <= largest < float("inf"):
            raise DiscoveryError(f"{name}: strengths must be 0 < recommended <= maximal, got {usual} and {largest}")
        out[name] = (usual, largest)
    return out


def _model_id(folder: str) -> str:
    """The model's public name: a circuit must not record where a user keeps the model."""
    if Path(folder).is_dir():
        name = Path(folder).resolve().name
        return DEFAULT_MODEL_ID if name == NAME else name
    return folder
