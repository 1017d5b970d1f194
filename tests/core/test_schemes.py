"""How weights are quantised is told by a checkpoint's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emovllm.fingerprint import LIMITS
from emovllm.schemes import SCHEMES, scheme_of, schemes_table


def compressed(format: str, dynamic: bool | None = None) -> dict[str, Any]:
    inputs = None if dynamic is None else {"num_bits": 8, "dynamic": dynamic}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"a": {"input_activations": inputs}},
    }


def modelopt(algorithm: str) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algorithm}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8 fixed"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8 blocks"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        (modelopt("FP8"), "fp8 fixed"),
        (modelopt("FP8_PER_CHANNEL_PER_TOKEN"), "fp8"),
        (modelopt("NVFP4"), "nvfp4"),
        (modelopt("W4A8_AWQ"), "others"),
        (compressed("float-quantized", True), "ct fp8"),
        (compressed("float-quantized", False), "ct fp8 fixed"),
        (compressed("int-quantized", True), "ct int8"),
        (compressed("int-quantized", False), "ct int8 fixed"),
        (compressed("pack-quantized"), "ct int4"),
        (compressed("nvfp4-pack-quantized", False), "ct nvfp4"),
        (compressed("marlin-24"), "others"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "bitsandbytes"}, "others"),
        ({}, "others"),
    ],
)
def test_a_configuration_is_of_one_scheme(settings: dict[str, Any], key: str) -> None:
    assert scheme_of(settings) is SCHEMES[key]


def test_the_page_has_each_scheme_and_each_limit() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/quantization.md").read_text()
    assert schemes_table() in page
    assert len(schemes_table().splitlines()) == 2 + len(SCHEMES)
    for bits, limit in LIMITS.items():
        assert f"| {bits if bits > 1 else 'below'} | {limit.whole} | {limit.site} |" in page
