"""What is measured: the whole, or a tiny part that a CPU runs as well."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from emovllm_server.verify.run import FLOAT32

V1, V2 = {"VLLM_USE_V2_MODEL_RUNNER": "0"}, {"VLLM_USE_V2_MODEL_RUNNER": "1"}
_PIECEWISE = ("--dtype", "float32", "--compilation-config", '{"cudagraph_mode": "PIECEWISE"}')
_ROOM = ("--max-model-len", "512", "--max-num-seqs", "64")
_TINY_ENGINE = (
    "--dtype",
    "float32",
    "--enforce-eager",
    "--max-model-len",
    "256",
    "--block-size",
    "32",
    "--max-num-seqs",
    "4",
)


@dataclass(frozen=True)
class Setting:
    """An engine that `emovllm verify` is asked about, in the model's bfloat16 and in float32, or in the latter alone.

    restarted: it is started again, and must load what it compiled.
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    restarted: bool = False


@dataclass(frozen=True)
class Workload:
    """A batch of equal requests, of which a figure is taken: `tpot_ms`, or `ttft_ms`."""

    title: str
    requests: int
    prompt_tokens: int
    output_tokens: int
    figure: str


@dataclass(frozen=True)
class Plan:
    """settings: of exactness. shapes: of speed, the first of them measured in every way.

    prompt_tokens: at most; fewer where the cache is small. columns: emotions of a circuit, each with its own engine.
    graphs: CUDA graphs of the engines whose kernels are counted.
    """

    settings: tuple[Setting, ...]
    verified_shape: str
    shapes: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    rounds: int
    columns: tuple[int, ...]
    workloads: tuple[Workload, ...]
    graphs: tuple[str, ...]
    profiled_sizes: tuple[int, ...]
    engine: dict[str, Any] = field(default_factory=dict)


FULL = Plan(
    settings=(
        Setting("v2", "V2 runner, full and piecewise graphs", _ROOM, V2),
        Setting("v2-piecewise", "V2 runner, piecewise graphs", (*_ROOM, *_PIECEWISE), V2 | FLOAT32, restarted=True),
        Setting("v1", "V1 runner, full and piecewise graphs", _ROOM, V1),
        Setting("v1-piecewise", "V1 runner, piecewise graphs", (*_ROOM, *_PIECEWISE), V1 | FLOAT32),
    ),
    verified_shape="small",
    shapes=("3b", "8b"),
    # A batch of 16 has 16 mixes of emotions, one of 256 has 256.
    batch_sizes=(1, 8, 16, 64, 256),
    prompt_tokens=384,
    output_tokens=128,
    rounds=5,
    columns=(1, 2, 12, 16),
    workloads=(
        Workload("prefill of 8192 tokens", 1, 8192, 2, "ttft_ms"),
        Workload("decode, batch 1", 1, 64, 128, "tpot_ms"),
        Workload("decode, batch 64", 64, 64, 128, "tpot_ms"),
    ),
    graphs=("FULL_AND_PIECEWISE", "NONE"),
    profiled_sizes=(1, 64),
)

TINY = Plan(
    settings=(Setting("v1", "V1 runner, eager", _TINY_ENGINE, V1),),
    verified_shape="tiny",
    shapes=("tiny",),
    batch_sizes=(1, 2),
    prompt_tokens=16,
    output_tokens=4,
    rounds=1,
    columns=(2,),
    workloads=(
        Workload("prefill of 64 tokens", 1, 64, 2, "ttft_ms"),
        Workload("decode, batch 2", 2, 16, 4, "tpot_ms"),
    ),
    graphs=("NONE",),
    profiled_sizes=(2,),
    engine={"enforce_eager": True, "block_size": 32, "max_num_seqs": 8},
)
PLANS = {"full": FULL, "tiny": TINY}
