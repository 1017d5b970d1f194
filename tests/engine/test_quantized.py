"""Quantised checkpoints: the circuit folds through the layer itself, whatever its weights are packed as."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emovllm.architectures import parse_site
from emovllm.circuit_files import load_circuit
from support.circuits import random_circuit
from support.engine import Engine, EngineError, Reply
from support.families import family_model
from support.oracle import Oracle
from support.series import Series, mixed_batch, unsteered

pytestmark = pytest.mark.engine

TOKENS = 12
GROUP = 32


def pack_int4(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """W4A16: symmetric, a scale for each 32 inputs; eight values in an int32, lowest bits first."""
    rows, columns = weight.shape
    groups = weight.view(rows, columns // GROUP, GROUP)
    # Powers of two, so that bfloat16 holds each weight exactly.
    scale = torch.exp2((groups.abs().amax(-1) / 7).log2().ceil())  # [rows, groups]
    values = (groups / scale[..., None]).round().clamp(-8, 7)
    nibbles = (values + 8).to(torch.int64).view(rows, columns // 8, 8)
    packed = (nibbles << torch.arange(0, 32, 4)).sum(-1).to(torch.int32)
    tensors = {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor([rows, columns])}
    return tensors, (values * scale[..., None]).view(rows, columns)


def pack_int8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """W8A8: a scale for each output; activations are rounded to int8 as they come, a scale for each token."""
    scale = weight.abs().amax(-1, keepdim=True) / 127
    values = (weight / scale).round()
    return {"weight": values.to(torch.int8), "weight_scale": scale}, values * scale


WEIGHTS = {"type": "int", "symmetric": True, "dynamic": False}
SCHEMES: dict[str, tuple[Callable[[Tensor], tuple[dict[str, Tensor], Tensor]], dict[str, Any]]] = {
    "w4a16": (
        pack_int4,
        {
            "format": "pack-quantized",
            "weights": {**WEIGHTS, "num_bits": 4, "strategy": "group", "group_size": GROUP},
            "input_activations": None,
        },
    ),
    "w8a8": (
        pack_int8,
        {
            "format": "int-quantized",
            "weights": {**WEIGHTS, "num_bits": 8, "strategy": "channel"},
            "input_activations": {**WEIGHTS, "num_bits": 8, "strategy": "token", "dynamic": True},
        },
    ),
}


def quantize(model: str, scheme: str, folder: Path) -> tuple[str, str]:
    """Writes a compressed-tensors checkpoint of `model`, and a plain one of the same, dequantised weights."""
    pack, config = SCHEMES[scheme]
    quantized: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, weight in load_file(Path(model) / "model.safetensors").items():
        if "_proj.weight" not in name:
            quantized[name] = plain[name] = weight
            continue
        tensors, plain[name] = pack(weight)
        quantized |= {name.removesuffix("weight") + part: tensor.contiguous() for part, tensor in tensors.items()}
    for kind, state in (("quantized", quantized), ("plain", plain)):
        shutil.copytree(model, folder / kind)
        save_file(state, folder / kind / "model.safetensors", {"format": "pt"})
    path = folder / "quantized" / "config.json"
    group = {"targets": ["Linear"], **{key: config[key] for key in ("weights", "input_activations")}}
    content = {
        **json.loads(path.read_text()),
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": config["format"],
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": group},
        },
    }
    path.write_text(json.dumps(content))
    return str(folder / "quantized"), str(folder / "plain")


def round_activations(model: nn.Module) -> None:
    """Makes a Hugging Face model round the inputs of its projections as W8A8 does. Hooks run in the order in which
    they were added, so that what the oracle injects afterwards is not rounded; nor is what the engine folded."""

    def rounded(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # A padding token's embedding is zero.
        scale = args[0].abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
        return ((args[0] / scale).round() * scale, *args[1:])

    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(rounded)


def agreement(replies: list[Reply], right: list[Reply]) -> tuple[int, float]:
    """Over the tokens that each two replies begin with in common: how many all others are, and the root mean square of
    what log-probabilities differ by."""
    errors = []
    for reply, one in zip(replies, right, strict=True):
        for step, (token, other) in enumerate(zip(reply.tokens, one.tokens, strict=True)):
            if token != other:
                break
            errors.append(reply.logprobs[step] - one.logprobs[step])
    return sum(len(one.tokens) for one in right) - len(errors), float(np.sqrt(np.mean(np.square(errors))))


@dataclass
class Case:
    """A quantised model, a circuit made for the weights before quantisation, and the oracle of both."""

    model: str
    plain: str
    circuit: Path
    oracle: Oracle
    dtype: str


@pytest.fixture(scope="module", params=SCHEMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    original = family_model("llama", folder / "original")
    model, plain = quantize(original, request.param, folder)
    circuit = random_circuit(original, folder / "circuit", scale=1.0)
    oracle = Oracle(plain, circuit)
    if request.param == "w8a8":
        round_activations(oracle.model)
    # vLLM's kernel of 4-bit weights takes no float32 on a CPU, and with AMX that of 8-bit ones takes none either.
    takes_float32 = request.param == "w8a8" and not torch.cpu._is_amx_tile_supported()
    return Case(model, plain, circuit, oracle, "float32" if takes_float32 else "bfloat16")


@pytest.fixture
def plain_engine(series: Series, case: Case) -> Engine:
    """vLLM without a circuit. How far its kernels are from the oracle on this processor is the measure of all else:
    some take bfloat16 alone, and some overflow."""
    engine = series.start(case.model, None, dtype=case.dtype)
    try:
        engine.generate(unsteered(mixed_batch()[:1]), 1)
    except EngineError as error:
        if "has no attribute 'cpu_gemm_wna16'" not in str(error):
            raise
        pytest.skip("this vLLM has no kernel of 4-bit weights for this processor")
    return engine


def test_a_mixed_batch_is_as_near_to_the_oracle_of_the_same_rounding_as_plain_requests_are(
    series: Series, case: Case, plain_engine: Engine
) -> None:
    asks = mixed_batch()
    expected, without = case.oracle.generate(asks, TOKENS), case.oracle.generate(unsteered(asks), TOKENS)
    unsteered_engine = plain_engine.generate(unsteered(asks), TOKENS)
    engine = series.start(case.model, case.circuit, dtype=case.dtype)
    steered, plain = engine.generate(asks, TOKENS), engine.generate(unsteered(asks), TOKENS)
    assert plain == unsteered_engine
    (plain_apart, plain_error), (apart, error) = agreement(plain, without), agreement(steered, expected)
    # Where the processor multiplies exactly, both are nearly 0.
    assert apart <= 2 * plain_apart + 4
    assert error <= 1.5 * plain_error + 0.005
    assert sum(a.tokens != b.tokens for a, b in zip(plain, steered, strict=True)) >= len(asks) - 4


def test_the_folded_vectors_are_those_of_the_dequantised_weights(
    series: Series, case: Case, plain_engine: Engine
) -> None:
    weights = load_file(Path(case.plain) / "model.safetensors")
    columns = {parse_site(name): np.array(found) for name, found in plain_engine.columns(16).items()}
    folded = series.start(case.model, case.circuit, dtype=case.dtype).vectors()
    circuit = load_circuit(case.circuit)
    sites = {parse_site(name.removesuffix(".weight")): weight.numpy() for name, weight in weights.items()}
    assert len(folded) == len(circuit.sites())

    def distance(found: np.ndarray, right: np.ndarray) -> float:
        return float(np.linalg.norm(found - right) / np.linalg.norm(right))

    for kind, layer in circuit.sites():
        weight = sites[kind, layer]  # [hidden, in]
        kernel = distance(columns[kind, layer], weight[:, :16].T)
        right = circuit.site_delta(kind, layer) @ weight.T
        assert distance(np.array(folded[f"{kind}.{layer}"]), right) < 1.5 * kernel + 2e-4


def test_another_models_circuit_is_still_refused(
    series: Series, case: Case, plain_engine: Engine, tmp_path: Path
) -> None:
    stranger = random_circuit(family_model("llama", tmp_path / "stranger", seed=1), tmp_path / "circuit")
    with pytest.raises(EngineError, match="weights served here are not that model's"):
        series.start(case.model, stranger, dtype=case.dtype)
