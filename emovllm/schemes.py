"""How weights are quantised, by what a checkpoint's configuration says, and what works with each: `emovllm models` and
docs/reference/quantization.md tell it, tests hold it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from emovllm.quantization import method_of

# How it is known that a circuit is folded exactly.
_EVIDENCE = {
    "kernel": "by vLLM's CPU kernel in the tests, as the dequantised weights",
    "arithmetic": "folded exactly through the kernel's arithmetic in the tests; vLLM's own was not run",
    "plain": "its experts alone are quantised, and the projections of heads are not",
    "unseen": "not tried; a kernel whose rounding is not known is refused at start-up",
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """discovered: by what its weights become plain numbers, None where by nothing."""

    name: str
    stored: str
    discovered: Literal["emovllm", "Transformers"] | None
    evidence: Literal["kernel", "arithmetic", "plain", "unseen"]

    @property
    def discovery(self) -> str:
        if self.discovered is None:
            return "refused: discover on the original, and serve this one with its circuit"
        return f"yes, on the weights that it stands for (dequantised by {self.discovered})"

    @property
    def served(self) -> str:
        return _EVIDENCE[self.evidence]


SCHEMES: dict[str, Scheme] = {
    "fp8": Scheme("FP8", "`fp8`, `fbgemm_fp8`, ModelOpt by channel", "emovllm", "arithmetic"),
    "fp8 fixed": Scheme("FP8, inputs by a fixed scale", "ModelOpt, `fp8` static", "emovllm", "kernel"),
    "fp8 blocks": Scheme("FP8 in blocks", "`fp8` with `weight_block_size`", "emovllm", "kernel"),
    "mxfp8": Scheme("MXFP8", "`mxfp8`, ModelOpt", "emovllm", "arithmetic"),
    "nvfp4": Scheme("NVFP4", "ModelOpt", "emovllm", "arithmetic"),
    "awq": Scheme("AWQ, 4 bits", "`awq`", "emovllm", "kernel"),
    "gptq": Scheme("GPTQ", "`gptq`", "emovllm", "kernel"),
    "ct fp8": Scheme("FP8", "compressed-tensors", "Transformers", "arithmetic"),
    "ct fp8 fixed": Scheme("FP8, inputs by a fixed scale", "compressed-tensors", "Transformers", "arithmetic"),
    "ct int8": Scheme("INT8", "compressed-tensors W8A8", "Transformers", "kernel"),
    "ct int8 fixed": Scheme("INT8, inputs by a fixed scale", "compressed-tensors W8A8", "Transformers", "kernel"),
    "ct int4": Scheme("INT4", "compressed-tensors W4A16", "Transformers", "kernel"),
    "ct nvfp4": Scheme("NVFP4", "compressed-tensors", "Transformers", "arithmetic"),
    "ct mxfp4": Scheme("MXFP4", "compressed-tensors", "Transformers", "arithmetic"),
    "mxfp4": Scheme("MXFP4 of experts", "`mxfp4` (gpt-oss)", "Transformers", "plain"),
    "others": Scheme("others", "bitsandbytes, TorchAO, Quark, AutoRound, ...", None, "unseen"),
}
_FORMATS = {
    "float-quantized": "ct fp8",
    "int-quantized": "ct int8",
    "pack-quantized": "ct int4",
    "nvfp4-pack-quantized": "ct nvfp4",
    "mxfp4-pack-quantized": "ct mxfp4",
}
_ALGORITHMS = {"FP8": "fp8 fixed", "FP8_PER_CHANNEL_PER_TOKEN": "fp8", "NVFP4": "nvfp4", "MXFP8": "mxfp8"}


def scheme_of(settings: Mapping[str, Any]) -> Scheme:
    """By a checkpoint's quantization_config."""
    method = method_of(settings)
    if method == "modelopt":
        key = _ALGORITHMS.get(str(settings.get("quant_algo")), "others")
    elif method == "compressed-tensors":
        key = _FORMATS.get(str(settings.get("format")), "others")
        groups = (settings.get("config_groups") or {}).values()
        inputs = [group.get("input_activations") or {"dynamic": True} for group in groups]
        key += " fixed" if key in ("ct fp8", "ct int8") and not all(one.get("dynamic") for one in inputs) else ""
    elif method == "fp8" and settings.get("weight_block_size"):
        key = "fp8 blocks"
    else:
        fixed = method == "fp8" and settings.get("activation_scheme") == "static"
        key = {"fbgemm_fp8": "fp8"}.get(method, f"{method} fixed" if fixed else method)
    return SCHEMES.get(key, SCHEMES["others"])


def schemes_table() -> str:
    """All schemes, as a Markdown table."""
    rows = [
        f"| {scheme.name} | {scheme.stored} | {scheme.discovered or 'refused'} | {scheme.served} |"
        for scheme in SCHEMES.values()
    ]
    return "\n".join(["| weights | stored as | dequantised for discovery by | served |", "|---|---|---|---|", *rows])
