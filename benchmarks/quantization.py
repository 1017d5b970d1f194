#!/usr/bin/env python3
"""How far rounding moves what a circuit writes, by scheme: the ground of the limits in emovllm/fingerprint.py.

    scripts/env python benchmarks/quantization.py                     # the default model and its circuit
    scripts/env python benchmarks/quantization.py MODEL CIRCUIT

Weights are rounded as each scheme rounds them, and the circuit is folded through both. A cell has the relative
distance over all sites, that of the worst site, and that of the worst site of a circuit of one emotion. Random units
are as many, normally distributed, at the same weights; random weights are normal, with the same circuit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm.fingerprint import (
    Written,
    fingerprint_distance,
    fingerprint_entries,
    limit_of,
    site_distance,
    site_key,
)
from emovllm.models import resolve_model, shipped_circuits
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import load
from emovllm_offline.model.weights import Projections
from support.rounding import fp8, int8, integers, mxfp4, nvfp4

Weights = Mapping[str, Tensor]
Deltas = Mapping[str, np.ndarray]  # [emotions, width]


def whole_numbers(bits: int, group: int, symmetric: bool) -> Callable[[Tensor], Tensor]:
    return lambda weight: integers(weight, bits, _group(weight, group), symmetric, powers=False).plain


def of_the_whole(weight: Tensor) -> Tensor:
    return integers(weight.reshape(1, -1), 8, 0, symmetric=True, powers=False).plain.reshape(weight.shape)


def _group(weight: Tensor, group: int) -> int:
    """The width of SmolLM2's projections is no multiple of 128: where it is not, of 64."""
    return group if not group or weight.shape[1] % group == 0 else 64


SCHEMES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "bfloat16": (16, lambda weight: weight.bfloat16().float()),
    "float16": (16, lambda weight: weight.half().float()),
    "FP8, a scale for all": (8, lambda weight: fp8(weight, 0, 0).plain),
    "FP8, a scale for each output": (8, lambda weight: fp8(weight, 1, 0).plain),
    "FP8, a scale for 128 x 128": (8, lambda weight: fp8(weight, 128, 128).plain),
    "INT8, a scale for each output": (8, lambda weight: int8(weight).plain),
    "INT8, a scale for all": (8, of_the_whole),
    "INT4 in groups of 128 (GPTQ's grid, W4A16)": (4, whole_numbers(4, 128, True)),
    "INT4 in groups of 128 with zeros (AWQ's grid)": (4, whole_numbers(4, 128, False)),
    "INT4 in groups of 32 with zeros (Q4_1's grid)": (4, whole_numbers(4, 32, False)),
    "INT4, a scale for each output": (4, whole_numbers(4, 0, True)),
    "NVFP4": (4, lambda weight: nvfp4(weight, modelopt=True).plain),
    "MXFP4": (4, lambda weight: mxfp4(weight).plain),
    "INT3 in groups of 128": (3, whole_numbers(3, 128, True)),
    "INT2 in groups of 64 with zeros": (2, whole_numbers(2, 64, False)),
}


def inputs(model: str, sites: list[tuple[str, int]]) -> dict[str, Tensor]:
    """What each projection is given on a page of English, as the sum of outer products that GPTQ asks for."""
    loaded = load(model)
    decoder = find_decoder(loaded.network)
    products: dict[str, Tensor] = {}
    text = (Path(__file__).parents[1] / "docs" / "guides" / "serving.md").read_text()
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids[:, :2048]
    hooks = []
    for kind, layer in sites:
        module = decoder.layers[layer].down_proj if kind == "mlp" else decoder.layers[layer].o_proj

        def keep(_: object, given: tuple[Tensor], key: str = site_key(kind, layer)) -> None:
            x = given[0][0].float()
            products[key] = x.T @ x

        hooks.append(module.register_forward_pre_hook(keep))
    with torch.inference_mode():
        loaded.network(ids)
    for hook in hooks:
        hook.remove()
    return products


def gptq(weight: Tensor, product: Tensor, bits: int, group: int) -> Tensor:
    """Columns are rounded one after another, and those to come make up for the errors (arXiv 2210.17323)."""
    size = weight.shape[1]
    damped = product + 0.01 * product.diagonal().mean() * torch.eye(size)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    left, rounded = weight.clone(), torch.empty_like(weight)
    grid = None
    for column in range(size):
        if column % group == 0:
            grid = integers(left[:, column : column + group], bits, 0, symmetric=True, powers=False)
        scale, zero = grid.scale[:, 0, 0], grid.zero[:, 0, 0]
        level = ((left[:, column] / scale).round() + zero).clamp(0, 2**bits - 1)
        rounded[:, column] = (level - zero) * scale
        error = (left[:, column] - rounded[:, column]) / inverse[column, column]
        left[:, column:] -= error[:, None] * inverse[None, column, column:]
    return rounded


def entries(deltas: Deltas, weights: Weights) -> dict[str, np.ndarray]:
    return {key: fingerprint_entries(delta @ weights[key].numpy().T) for key, delta in deltas.items()}


def distances(deltas: Deltas, weights: Weights, expected: Mapping[str, np.ndarray]) -> tuple[float, list[float]]:
    """Of what is written through these weights: over all sites, and at each."""
    measured = entries(deltas, weights)
    powers = {key: np.square(delta) @ np.square(weights[key].numpy()).mean(0) for key, delta in deltas.items()}
    sites = [
        site_distance(Written(values, float(powers[key].sum()), None), expected[key])
        for key, values in measured.items()
    ]
    return fingerprint_distance(measured, expected), sites


def of_one(values: Mapping[str, np.ndarray], emotion: int) -> dict[str, np.ndarray]:
    return {key: each[emotion : emotion + 1] for key, each in values.items()}


def random_deltas(deltas: Deltas, random: np.random.Generator) -> dict[str, np.ndarray]:
    """As many units of each emotion and site as the circuit has, anywhere."""
    drawn = {}
    for key, delta in deltas.items():
        drawn[key] = np.zeros_like(delta)
        for row, old in zip(drawn[key], delta, strict=True):
            there = random.choice(len(row), np.count_nonzero(old), replace=False)
            row[there] = random.standard_normal(len(there))
    return drawn


def row(name: str, cases: list[tuple[Deltas, Weights, Weights]], bits: int) -> str:
    """cases: deltas, the weights, and what is left of them."""
    cells = []
    for deltas, weights, rounded in cases:
        expected = entries(deltas, weights)
        whole, sites = distances(deltas, rounded, expected)
        emotions = range(len(next(iter(expected.values()))))
        alone = max(max(distances(of_one(deltas, one), rounded, of_one(expected, one))[1]) for one in emotions)
        cells.append(f"{whole:.2g} / {max(sites):.2g} / {alone:.2g}")
    cells += [""] * (3 - len(cells))
    limit = limit_of(bits)
    return f"| {name} | {' | '.join(cells)} | {limit.whole} / {limit.site} |"


def main(model: str | None = None, folder: str | None = None) -> None:
    circuit: Circuit = load_circuit(folder or shipped_circuits() / "SmolLM2-135M-Instruct")
    read = Projections(resolve_model(model))
    sites = circuit.sites()
    deltas = {site_key(*site): circuit.site_delta(*site) for site in sites}
    weights = {site_key(*site): torch.from_numpy(read(*site)) for site in sites}
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    normal = {key: torch.randn_like(weight) * weight.std() for key, weight in weights.items()}
    drawn = random_deltas(deltas, random)
    print("| weights rounded to | the circuit | random units | random weights | limits |")
    print("|---|---|---|---|---|")
    for name, (bits, rounding) in SCHEMES.items():
        rounded = {key: rounding(weight) for key, weight in weights.items()}
        rounded_normal = {key: rounding(weight) for key, weight in normal.items()}
        print(
            row(name, [(deltas, weights, rounded), (drawn, weights, rounded), (deltas, normal, rounded_normal)], bits)
        )
    products = inputs(resolve_model(model), sites)
    fed = {key: gptq(weight, products[key], 4, _group(weight, 128)) for key, weight in weights.items()}
    print(row("INT4 in groups of 128 by GPTQ", [(deltas, weights, fed), (drawn, weights, fed)], 4))
    expected = entries(deltas, weights)
    layers = circuit.spec.model.num_hidden_layers
    turned = {site_key(*site): torch.from_numpy(read(site[0], (site[1] + 1) % layers)) for site in sites}
    for name, other in (("its layers one off", turned), ("random weights", normal)):
        whole, at = distances(deltas, other, expected)
        print(f"| {name} | {whole:.2g} / {min(at):.2g} at least | | | |")


if __name__ == "__main__":
    main(*sys.argv[1:])
