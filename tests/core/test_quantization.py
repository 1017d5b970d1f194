"""How many bits weights were rounded to, by what their checkpoint's configuration says."""

from __future__ import annotations

from typing import Any

import pytest

from emovllm.quantization import bits_of, bits_of_name

FOUR = {"num_bits": 4, "type": "float", "group_size": 16}
EIGHT = {"num_bits": 8, "type": "int"}


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({"quant_method": "fp8", "activation_scheme": "static"}, 8),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, 4),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, 4),
        ({"quant_method": "gptq", "bits": 8, "dynamic": {"+:.*down.*": {"bits": 3}, "-:.*up.*": {}}}, 3),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}, 8),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": FOUR}}}, 4),
        # Of activations and caches it is something else.
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": EIGHT, "input_activations": FOUR, "output_activations": FOUR}},
                "kv_cache_scheme": FOUR,
            },
            8,
        ),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 8),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, 4),
        (
            {
                "quant_method": "modelopt",
                "quant_algo": "MIXED_PRECISION",
                "quantized_layers": {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "NVFP4"}},
            },
            4,
        ),
        ({"quant_method": "quark", "global_quant_config": {"weight": [{"dtype": "fp8_e4m3"}, {"dtype": "int4"}]}}, 4),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8DynamicActivationInt4WeightConfig"}}}, 4),
        ({"quant_method": "fp_quant", "forward_dtype": "mxfp4"}, 4),
        ({"quant_method": "aqlm"}, None),
        ({"quant_method": "x", "dtype": "bfloat16"}, None),
    ],
)
def test_the_bits_are_those_of_the_coarsest_weights(settings: dict[str, Any], bits: int | None) -> None:
    assert bits_of(settings) == bits


@pytest.mark.parametrize(
    ("name", "bits"),
    [("fp8_per_tensor", 8), ("nvfp4_per_token", 4), ("Q4_1", 4), ("Q8_0", 8), ("compressed-tensors", None), ("", None)],
)
def test_a_name_alone_tells_them_where_it_has_them(name: str, bits: int | None) -> None:
    assert bits_of_name(name) == bits
