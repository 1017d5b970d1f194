"""`emovllm models`: which models are known, and what can be done with one, by its configuration alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from emovllm.architectures import FAMILIES, REFUSED, candidates
from emovllm.errors import ModelError
from emovllm.family import Family
from emovllm.fingerprint import USUAL_BITS, limit_of
from emovllm.models import resolve_model
from emovllm.options import FLAT, Options
from emovllm.quantization import bits_of, method_of
from emovllm.schemes import scheme_of
from emovllm.spec import by_projection, in_layers

_SERVED = {
    "tests": "exact (tests)",
    "once": "exact (tried)",
    "sites": "not on a CPU",
    "none": "not by vLLM",
}
_EXPERTS = ": its MLPs are experts"
# What GPT-2 and its like call them.
_OLDER = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "hidden_size": "n_embd"}
# What configurations call the width of an MLP, the more particular first.
_WIDTHS = (
    "shared_intermediate_size",
    "intermediate_size_mlp",
    "intermediate_size",
    "ffn_dim",
    "ffn_hidden_size",
    "n_inner",
)
# How Nemotron writes what its layers are.
_PATTERN = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
# Architectures that vLLM computes with kernels of their own, those of its package vllm.models.
FUSED = re.compile(r"(?i)DeepseekV(32|4)|GlmMoeDsa|Glm5|Kimi(K3|Linear)|MiniMaxM3|Qwen4|HYV4|Inkling|Dots3|Step5")


@dataclass(frozen=True)
class ModelsOptions(Options):
    model: Annotated[str | None, Parameter(help="folder or Hugging Face id; none: all families that are known")] = None


@dataclass(frozen=True, slots=True)
class Units:
    """What a circuit of a model can act on, by layer: 0 where it cannot.

    attn: the projection that takes the heads, by its path in the layer.
    """

    neurons: tuple[int, ...]
    heads: tuple[int, ...]
    attn: tuple[str, ...]
    experts: tuple[bool, ...]  # whether neurons of routed experts can be discovered


def main(options: Annotated[ModelsOptions, FLAT] = ModelsOptions()) -> None:
    """Which families of models are known; or of one model, by its configuration alone, what a circuit can act on, what
    discovery and the engine do with it, and what is refused and why.
    """
    print(table() if options.model is None else describe(options.model))


def table() -> str:
    """All families, as a Markdown table."""
    rows = [("models", "model_type", "heads at", "neurons at", "experts at", "discovery", "served")]
    for family in FAMILIES:
        neurons = ", ".join(family.projections["mlp"]) or "-"
        heads = ", ".join((family.attn, *(mixer.projection for mixer in family.mixers)))
        discovery = "refused" if family.not_discovered else "yes"
        rows.append(
            (
                family.name,
                family.model_type,
                heads,
                neurons + (" (dense layers)" if _mixed(family) else ""),
                (not family.no_experts and family.experts) or "-",
                discovery,
                _SERVED[family.served],
            )
        )
    rows += [(name, model_type, "-", "-", "-", "refused", "refused") for model_type, (name, _) in REFUSED.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    why = [f"{name}: {reason}." for name, reason in REFUSED.values()]
    return "\n".join([lines[0], rule, *lines[1:], "", "Refused, for", *(f"- {line}" for line in why)])


def describe(model: str) -> str:
    """What can be done with one model. Raises: ModelError."""
    whole = read_config(model)
    config = whole.get("text_config") or whole
    model_type = str(config.get("model_type") or whole.get("model_type"))
    rows = candidates(model_type)
    lines = [f"{model}: {_architecture(whole)}, {model_type}"]
    if config is not whole:
        lines.append("text        the language model in it alone; other modalities have no sites")
    if model_type in REFUSED:
        return "\n".join([*lines, f"refused     {REFUSED[model_type][1]}"])
    if len(rows) > 1:
        lines.append("table       no row: discovery looks whether a row fits, and refuses it otherwise")
        return "\n".join([*lines, *_engine(None, whole)])
    (family,) = rows
    units = units_of(family, config)
    lines += [
        f"table       {family.name}",
        f"neurons     {in_layers(units.neurons)}{_inputs_of(family) if any(units.neurons) else _EXPERTS}",
        *([f"experts     {_routed(family, units)}"] if family.experts else []),
        f"heads       {_heads(units)}",
        f"discovery   {f'refused: {family.not_discovered}' if family.not_discovered else _discovery(whole)}",
        *_engine(family, whole),
    ]
    sites = sum(map(bool, units.neurons)) + sum(map(bool, units.heads))
    size = 6 * sites * _size(config, "hidden_size") * 4
    lines.append(f"memory      {size / 2**20:.3g} MiB for a circuit of six emotions, beside the model")
    return "\n".join(lines)


def units_of(family: Family, config: Mapping[str, Any]) -> Units:
    """By a text configuration alone. Raises: ModelError where it lacks a size."""
    layers = range(len(_layer_types(config)) if family.alone else _size(config, "num_hidden_layers"))
    attn = tuple(_attn(family, config, layer) for layer in layers)
    heads = tuple(_size(config, family.heads_setting(path)) if path else 0 for path in attn)
    neurons = tuple(0 if family.alone and attn[layer] else _neurons(family, config, layer) for layer in layers)
    experts = tuple(_has_experts(family, config, layer) and not family.no_experts for layer in layers)
    return Units(neurons, heads, attn, experts)


def read_config(model: str) -> dict[str, Any]:
    """A model's config.json; nothing else is downloaded. Raises: ModelError."""
    place = Path(resolve_model(model) if model == "default" else model).expanduser()
    if not place.is_dir():
        from huggingface_hub import hf_hub_download

        try:
            place = Path(hf_hub_download(model, "config.json")).parent
        except Exception as error:
            raise ModelError(f"{model}: neither a folder nor a model that could be fetched ({error})") from None
    try:
        config = json.loads((place / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{place / 'config.json'}: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{place / 'config.json'}: not a JSON object")
    return config


def _architecture(whole: Mapping[str, Any]) -> str:
    return str((whole.get("architectures") or ["an unnamed architecture"])[0])


def _heads(units: Units) -> str:
    of_each = by_projection(units.heads, units.attn)
    return "; ".join(f"{in_layers(counts)}, inputs of {path}" for path, counts in of_each.items())


def _inputs_of(family: Family) -> str:
    return f", inputs of {' or '.join(family.projections['mlp'])}"


def _routed(family: Family, units: Units) -> str:
    if family.no_experts:
        return f"left out: {family.no_experts}"
    where = f"routed ones in {sum(units.experts)} of {len(units.experts)} layers"
    return f"{where}; with `emovllm discover --experts` their neurons too, as constant vectors"


def _mixed(family: Family) -> bool:
    return family.experts is not None and family.mlp is not None


def _attn(family: Family, config: Mapping[str, Any], layer: int) -> str:
    """The projection of attention, or of the mixer in its place, in a layer; none where a layer is an MLP alone."""
    if not family.mixers:
        return family.attn
    (mixer,) = family.mixers
    types = _layer_types(config)
    if family.alone and types[layer] in ("mlp", "moe"):
        return ""
    if types:
        other = "attention" not in types[layer] or types[layer] == "linear_attention"
    elif (indices := config.get("attn_layer_indices")) is not None:
        other = layer not in indices
    else:
        other = (layer + 1) % int(config.get("full_attention_interval") or 4) != 0
    return mixer.projection if other else family.attn


def _layer_types(config: Mapping[str, Any]) -> list[str]:
    """What each layer is, where the configuration says so."""
    named = config.get("layer_types") or config.get("layers_block_type")
    return list(named or map(_PATTERN.__getitem__, config.get("hybrid_override_pattern", "")))


def _neurons(family: Family, config: Mapping[str, Any], layer: int) -> int:
    if _has_experts(family, config, layer):
        return _shared_width(config) if family.shared else 0
    return _dense_width(config) if family.mlp else 0


def _has_experts(family: Family, config: Mapping[str, Any], layer: int) -> bool:
    if family.experts is None:
        return False
    if family.mlp is None:
        return True
    if family.alone:
        return _layer_types(config)[layer] == "moe"
    if (types := config.get("mlp_layer_types")) is not None:
        return bool(types[layer] == "sparse")
    for dense in ("first_k_dense_replace", "num_dense_layers"):
        if config.get(dense) is not None:
            return layer >= int(config[dense])
    if (interval := config.get("interleave_moe_layer_step")) is not None:
        return layer in config["moe_layers"] if config.get("moe_layers") else (layer + 1) % int(interval) == 0
    if layer in (config.get("mlp_only_layers") or ()):
        return False
    return (layer + 1) % int(config.get("decoder_sparse_step") or 1) == 0


def _size(config: Mapping[str, Any], name: str) -> int:
    """Raises: ModelError."""
    for each in (name, _OLDER.get(name, name)):
        if isinstance(config.get(each), int):
            return int(config[each])
    raise ModelError(f"the configuration has no {name}")


def _dense_width(config: Mapping[str, Any]) -> int:
    for name in _WIDTHS:
        if config.get(name):
            return int(config[name])
    return 4 * _size(config, "hidden_size")


def _shared_width(config: Mapping[str, Any]) -> int:
    of_shared = config.get("moe_shared_expert_intermediate_size") or config["moe_intermediate_size"]
    return int(of_shared) * int(config.get("n_shared_experts") or 0)


def _quantisation(whole: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return whole.get("quantization_config") or None


def _discovery(whole: Mapping[str, Any]) -> str:
    settings = _quantisation(whole)
    return "yes" if settings is None else scheme_of(settings).discovery


def _engine(family: Family | None, whole: Mapping[str, Any]) -> list[str]:
    if FUSED.match(_architecture(whole)):
        return ["engine      refused: vLLM computes it with fused kernels, which go past the projections"]
    known = (
        "served if vLLM has its projections as row-parallel layers; start-up tells"
        if family is None
        else {
            "tests": "served, equal to Hugging Face with hooks in the tests",
            "once": "served, equal to Hugging Face with hooks when tried",
            "sites": "its sites are found; vLLM computes it on a GPU alone, where it was not run",
            "none": "refused: vLLM has no class that computes it",
        }[family.served]
    )
    settings = _quantisation(whole)
    if settings is None:
        return [f"engine      {known}", f"weights     {whole.get('dtype') or whole.get('torch_dtype') or 'float32'}"]
    scheme, bits = scheme_of(settings), bits_of(settings)
    width = f"{bits} bits" if bits else "of unknown bits"
    limit = limit_of(bits or USUAL_BITS)
    lines = [
        f"engine      {known}",
        f"weights     {method_of(settings)}: {scheme.name}, {width}; {scheme.served}",
    ]
    if scheme.evidence != "plain":
        lines.append(
            f"fingerprint a circuit of the original may differ by {limit.whole} through them, by {limit.site} at a site"
        )
    return lines
