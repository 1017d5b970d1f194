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
from emovllm.fingerprint import LIMITS, fingerprint_entries
from emovllm.schemes import scheme_of
from support.circuits import random_circuit
from support.engine import Engine, EngineError, Reply
from support.families import family_model
from support.models import tiny_model
from support.oracle import Oracle
from support.rounding import Rounded, awq, fp8, gptq, int8, packed_integers
from support.series import Series, mixed_batch, unsteered

pytestmark = pytest.mark.engine

TOKENS = 12
GROUP = 32


WEIGHTS = {"type": "int", "symmetric": True, "dynamic": False}
Pack = Callable[[Tensor], Rounded]


def compressed(format: str, **of_group: Any) -> dict[str, Any]:
    """A quantization_config of compressed-tensors."""
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], **of_group}},
    }


EIGHT = {**WEIGHTS, "num_bits": 8}
# W4A16, and W8A8, whose activations are rounded as they come, a scale for each token.
SCHEMES: dict[str, tuple[Pack, dict[str, Any]]] = {
    "w4a16": (
        packed_integers,
        compressed("pack-quantized", weights={**WEIGHTS, "num_bits": 4, "strategy": "group", "group_size": GROUP}),
    ),
    "w8a8": (
        int8,
        compressed(
            "int-quantized",
            weights={**EIGHT, "strategy": "channel"},
            input_activations={**EIGHT, "strategy": "token", "dynamic": True},
        ),
    ),
}


def quantize(model: str, pack: Pack, settings: dict[str, Any], folder: Path, only: str = "_proj") -> tuple[str, str]:
    """Writes a quantised checkpoint of `model`, and a plain one of the same, dequantised weights. only: the end of the
    names of layers that are quantised."""
    quantized: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, weight in load_file(Path(model) / "model.safetensors").items():
        if not name.endswith(f"{only}.weight"):
            quantized[name] = plain[name] = weight
            continue
        plain[name], tensors = pack(weight)
        quantized |= {name.removesuffix("weight") + part: tensor.contiguous() for part, tensor in tensors.items()}
    for kind, state in (("quantized", quantized), ("plain", plain)):
        shutil.copytree(model, folder / kind)
        save_file(state, folder / kind / "model.safetensors", {"format": "pt"})
    path = folder / "quantized" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))
    return str(folder / "quantized"), str(folder / "plain")


def by_token(x: Tensor) -> Tensor:
    # A padding token's embedding is zero.
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
    return (x / scale).round() * scale


def round_activations(model: nn.Module, rounding: Callable[[Tensor], Tensor], only: str = "_proj") -> None:
    """Makes a Hugging Face model round the inputs of its projections. Hooks run in the order in which they were added,
    so that what the oracle injects afterwards is not rounded; nor is what the engine folded."""
    for name, module in model.named_modules():
        if name.endswith(only):
            module.register_forward_pre_hook(lambda _, args: (rounding(args[0]), *args[1:]))


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
    bits: int


@pytest.fixture(scope="module", params=SCHEMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    original = family_model("llama", folder / "original")
    model, plain = quantize(original, *SCHEMES[request.param], folder)
    circuit = random_circuit(original, folder / "circuit", scale=1.0)
    oracle = Oracle(plain, circuit)
    if request.param == "w8a8":
        round_activations(oracle.model, by_token)
    # vLLM's kernel of 4-bit weights takes no float32 on a CPU, and with AMX that of 8-bit ones takes none either.
    takes_float32 = request.param == "w8a8" and not torch.cpu._is_amx_tile_supported()
    bits = {"w4a16": 4, "w8a8": 8}[request.param]
    return Case(model, plain, circuit, oracle, "float32" if takes_float32 else "bfloat16", bits)


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
    engine = series.start(case.model, case.circuit, dtype=case.dtype)
    folded = engine.vectors()
    circuit = load_circuit(case.circuit)
    (report,) = engine.call("collective_rpc", "emotion_report")
    distances = report["distances"][circuit.digest()]
    sites = {parse_site(name.removesuffix(".weight")): weight.numpy() for name, weight in weights.items()}
    assert len(folded) == len(circuit.sites())

    def distance(found: np.ndarray, right: np.ndarray) -> float:
        return float(np.linalg.norm(found - right) / np.linalg.norm(right))

    for kind, layer in circuit.sites():
        weight = sites[kind, layer]  # [hidden, in]
        # What the kernel itself is off by counts: nearly nothing, or up to 0.15 where an older processor's overflows.
        kernel = 1.5 * distance(columns[kind, layer], weight[:, :16].T)
        right = circuit.site_delta(kind, layer) @ weight.T
        key = f"{kind}.{layer}"
        assert distance(np.array(folded[key]), right) < kernel + 2e-4
        # What `emovllm verify` tells of quantised weights.
        told, limit = distances[key]
        rounding = distance(fingerprint_entries(right), circuit.fingerprint[key])
        # Relative to what units would write if they did not cancel each other, where they do.
        assert rounding / 2 - kernel - 0.005 < told < 1.1 * rounding + kernel + 0.005
        assert 1e-3 < told < limit == LIMITS[case.bits].site


def test_another_models_circuit_is_still_refused(
    series: Series, case: Case, plain_engine: Engine, tmp_path: Path
) -> None:
    stranger = random_circuit(family_model("llama", tmp_path / "stranger", seed=1), tmp_path / "circuit")
    with pytest.raises(EngineError, match="weights served here are not that model's"):
        series.start(case.model, stranger, dtype=case.dtype)


# Inputs up to this: a 1 would be clipped to it.
LARGEST = 0.5
# vLLM's kernel that keeps activations in 16 bits; without it, PyTorch's rounds them.
ROUNDED_INPUTS = {"VLLM_DISABLED_KERNELS": "CPUFp8PerTensorScaledMMLinearKernel"}


def beside(pack: Pack, **scales: Tensor) -> Pack:
    """With more tensors beside each weight."""

    def packed(weight: Tensor) -> Rounded:
        plain, tensors = pack(weight)
        return Rounded(plain, {**tensors, **{name: scale.clone() for name, scale in scales.items()}})

    return packed


def fixed_fp8(x: Tensor) -> Tensor:
    scale = LARGEST / 448
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def fixed_int8(x: Tensor) -> Tensor:
    """With a zero at -28, of which there are 155 steps up to the largest."""
    scale = LARGEST / 155
    return (((x / scale).round() - 28).clamp(-128, 127) + 28) * scale


@dataclass(frozen=True)
class Other:
    """A scheme that vLLM's CPU build loads, at least on some processors."""

    pack: Pack
    settings: dict[str, Any]
    rounding: Callable[[Tensor], Tensor] | None = None
    env: dict[str, str] | None = None
    only: str = "_proj"


# One scale that is wide enough for all, for vLLM rounds parts of a fused projection anew where theirs differ.
MODELOPT: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
IN_BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def fp8_of_one_scale(weight: Tensor) -> Rounded:
    scale = torch.tensor(2.0**-11)
    packed = (weight / scale).to(torch.float8_e4m3fn)
    return Rounded(packed.float() * scale, {"weight": packed, "weight_scale": scale})


OTHERS = {
    "fp8": Other(beside(fp8_of_one_scale, input_scale=torch.tensor(LARGEST / 448)), MODELOPT),
    "fp8 in blocks": Other(lambda weight: fp8(weight, 128, 128, "weight_scale_inv"), IN_BLOCKS),
    # What is between gate and down projection would be rounded by a function that the CPU build lacks.
    "fp8, inputs by a fixed scale": Other(
        beside(fp8_of_one_scale, input_scale=torch.tensor(LARGEST / 448)),
        {**MODELOPT, "ignore": ["lm_head", "*q_proj", "*k_proj", "*v_proj", "*mlp*"]},
        fixed_fp8,
        ROUNDED_INPUTS,
        only="o_proj",
    ),
    "int8, inputs by a fixed scale and zero": Other(
        beside(
            int8,
            input_scale=torch.tensor([LARGEST / 155]),
            input_zero_point=torch.tensor([-28], dtype=torch.int8),
        ),
        compressed(
            "int-quantized",
            weights={**EIGHT, "strategy": "channel"},
            input_activations={**EIGHT, "strategy": "tensor", "symmetric": False},
        ),
        fixed_int8,
    ),
    "awq": Other(awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}),
    "gptq": Other(
        gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True, "lm_head": False},
    ),
}


@pytest.mark.parametrize("scheme", OTHERS)
def test_what_else_the_cpu_loads_is_folded_and_served_as_its_dequantised_weights(
    series: Series, tmp_path: Path, scheme: str
) -> None:
    other = OTHERS[scheme]
    # As `emovllm models` says.
    assert scheme_of(other.settings).evidence == "kernel"
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
    original = tiny_model(tmp_path / "original", **sizes)
    model, plain = quantize(original, other.pack, other.settings, tmp_path, other.only)
    circuit = random_circuit(original, tmp_path / "circuit", scale=1.0)
    try:
        engine = series.start(model, circuit, other.env, dtype="bfloat16")
    except EngineError:
        # Nor does plain vLLM start with it on this processor, or it ends with the first token.
        with pytest.raises(EngineError):
            series.start(model, None, other.env, dtype="bfloat16").generate(unsteered(mixed_batch()[:1]), 1)
        return
    weights = load_file(Path(plain) / "model.safetensors")
    sites = {parse_site(name.removesuffix(".weight")): weight.numpy() for name, weight in weights.items()}
    of_circuit = load_circuit(circuit)
    folded = engine.vectors()
    for kind, layer in of_circuit.sites():
        right = of_circuit.site_delta(kind, layer) @ sites[kind, layer].T
        wrong = np.array(folded[f"{kind}.{layer}"]) - right
        assert np.linalg.norm(wrong) < 0.004 * np.linalg.norm(right), f"{kind}.{layer}"
    oracle = Oracle(plain, circuit)
    if other.rounding is not None:
        round_activations(oracle.model, other.rounding, other.only)
    asks = mixed_batch()[:6]
    (_, plain_error), (apart, error) = (
        agreement(engine.generate(batch, 6), oracle.generate(batch, 6)) for batch in (unsteered(asks), asks)
    )
    assert error <= 1.5 * plain_error + 0.005
    # In 16 bits some replies part, at tokens that are about as likely.
    assert apart < 18
