"""From `additional_config["emovllm"]` to an engine that steers: checked, refused where it would not be exact.

The settings name our worker and scheduler classes in vLLM's own configuration, which every process receives: a process
without emovllm cannot start, rather than serve unsteered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emovllm import __version__
from emovllm.circuit import Circuit, load_circuit, resolve_circuit

if TYPE_CHECKING:
    from vllm.config import VllmConfig

KEY = "emovllm"
# All that we wrap, subclass, call and read is in these, as scripts/check_vllm_versions finds.
SUPPORTED_VLLM = tuple(f"0.{minor}" for minor in range(26, 34))
# Emotions in a circuit, whose coefficients every token carries.
MAX_EMOTIONS = 256

_WORKERS = {
    "vllm.v1.worker.gpu_worker.Worker": "emovllm.engine.worker.EmotionWorker",
    "vllm.v1.worker.cpu_worker.CPUWorker": "emovllm.engine.cpu_worker.EmotionCPUWorker",
}
_SCHEDULERS = {
    False: "emovllm.engine.scheduler.EmotionScheduler",
    True: "emovllm.engine.scheduler.EmotionAsyncScheduler",
}


class Unsupported(ValueError):
    """A configuration that we cannot steer exactly, and what to change."""


class Settings(BaseModel):
    """`additional_config["emovllm"]`. A user gives `circuit`; the rest is filled in at start-up."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    circuit: Annotated[str, Field(min_length=1)]
    allow_untested_vllm: bool = False
    # Whether requests may ask for the steering baseline too, as evaluations do.
    steering: bool = False
    digest: str = ""
    # Part of the compile cache's key: a graph compiled without our sites, or with others, must never be loaded.
    graph: str = ""


def settings_of(vllm_config: VllmConfig) -> Settings | None:
    """The settings in a configuration, or None where no circuit is configured. Raises: Unsupported."""
    additional = vllm_config.additional_config
    if not isinstance(additional, dict) or additional.get(KEY) is None:
        return None
    try:
        return Settings.model_validate(additional[KEY])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, (KEY, *first["loc"])))
        raise Unsupported(f"additional_config {where}: {first['msg']}") from None


def configure(vllm_config: VllmConfig) -> Circuit | None:
    """Makes the engines started from `vllm_config` steer, if it names a circuit. Idempotent.

    Raises: Unsupported, CircuitError.
    """
    settings = settings_of(vllm_config)
    if settings is None:
        return None
    _check_version(settings)
    folder = resolve_circuit(settings.circuit)
    circuit = load_circuit(folder)
    _check_model(vllm_config, circuit)
    if settings.steering and not circuit.directions:
        raise Unsupported(f"{folder}: steering needs a circuit that holds directions; `emovllm discover` writes them")
    _check_modes(vllm_config)
    _use_our_classes(vllm_config)
    filled = settings.model_copy(
        update={
            "circuit": str(folder),
            "digest": circuit.digest(),
            "graph": graph_tag(circuit, adapters_of(vllm_config), settings.steering),
        }
    )
    vllm_config.additional_config = {**vllm_config.additional_config, KEY: filled.model_dump()}
    return circuit


def graph_tag(circuit: Circuit, adapters: int, steering: bool = False) -> str:
    """What our part of the compiled graph depends on: the code, the sites, the coefficients' columns."""
    sites = ",".join(f"{kind}{layer}" for kind, layer in circuit.sites())
    return f"{__version__}/{len(circuit.names)}x{1 + adapters}/{sites}{'/steering' if steering else ''}"


def adapters_of(vllm_config: VllmConfig) -> int:
    """Slots for LoRA adapters, 0 without LoRA."""
    return vllm_config.lora_config.max_loras if vllm_config.lora_config else 0


def prompt_length(wire: Mapping[str, Any], prompt_len: int) -> int:
    """A steered request's prompt, which is shorter than what vLLM has for it where a beam goes on."""
    return wire.get("prompt_len", prompt_len)


def emotion_of(params: Any) -> Mapping[str, Any] | None:
    """The resolved emotion of a request's sampling parameters, or None."""
    return (params.extra_args or {}).get(KEY) if params is not None else None


def _check_version(settings: Settings) -> None:
    import vllm

    minor = ".".join(vllm.__version__.split(".")[:2])
    if minor not in SUPPORTED_VLLM and not settings.allow_untested_vllm:
        raise Unsupported(
            f"emovllm {__version__} is made for vLLM {SUPPORTED_VLLM[0]} to {SUPPORTED_VLLM[-1]} and this is "
            f"{vllm.__version__}; install one of those, or add to additional_config's {KEY!r}, at your own risk, "
            '"allow_untested_vllm": true'
        )


def _check_model(vllm_config: VllmConfig, circuit: Circuit) -> None:
    """Compares dimensions, which is quick; the workers compare weights once they are loaded."""
    model, spec = vllm_config.model_config, circuit.spec.model
    served = model.hf_text_config
    pairs: dict[str, tuple[Any, Any]] = {
        "num_hidden_layers": (served.num_hidden_layers, spec.num_hidden_layers),
        "hidden_size": (served.hidden_size, spec.hidden_size),
        "num_attention_heads": (served.num_attention_heads, spec.num_attention_heads),
        "head_dim": (model.get_head_size(), spec.head_dim),
        # Not all configurations have it, nor by this name.
        "intermediate_size": (getattr(served, "intermediate_size", None), spec.intermediate_size),
    }
    wrong = [
        f"{name} {ours} here, {theirs} there"
        for name, (ours, theirs) in pairs.items()
        if ours is not None and ours != theirs
    ]
    if wrong:
        raise Unsupported(f"the circuit was made for {spec.id}, which is not the model {model.model}: "
                          f"{'; '.join(wrong)}")  # fmt: skip
    if len(circuit.names) > MAX_EMOTIONS:
        raise Unsupported(f"the circuit has {len(circuit.names)} emotions; at most {MAX_EMOTIONS} can be served")


def _check_modes(vllm_config: VllmConfig) -> None:
    """Refuses what is not exact, or not yet shown to be."""
    import vllm.envs as envs

    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    refusals = {
        "a pooling model": model.runner_type != "generate",
        "an encoder-decoder model": bool(model.is_encoder_decoder),
        "the Rust front end; unset VLLM_USE_RUST_FRONTEND": getattr(envs, "VLLM_USE_RUST_FRONTEND", False),
        "micro-batching; drop --enable-dbo": parallel.use_ubatching,
        "prefill-context parallelism; set --prefill-context-parallel-size 1": _above_one(
            parallel, "prefill_context_parallel_size"
        ),
        "elastic expert parallelism; drop --enable-elastic-ep": getattr(parallel, "enable_elastic_ep", False),
        "kv_sharing_fast_prefill; turn it off": vllm_config.cache_config.kv_sharing_fast_prefill,
        "sharded LoRA adapters; drop --fully-sharded-loras": getattr(
            vllm_config.lora_config, "fully_sharded_loras", False
        ),
        "adaptive verification of drafts, which moves tokens between requests on the device; turn it off": getattr(
            vllm_config.speculative_config, "enable_adaptive_verification", False
        ),
        "KV connectors, whose caches do not tell emotions apart; drop --kv-transfer-config": bool(
            vllm_config.kv_transfer_config
        ),
        "weight transfer, which changes weights after the circuit was folded": bool(
            getattr(vllm_config, "weight_transfer_config", None)
        ),
    }
    refused = [what for what, present in refusals.items() if present]
    if refused:
        raise Unsupported(f"emovllm cannot steer exactly with {'; nor with '.join(refused)}")


def _above_one(config: Any, name: str) -> bool:
    return int(getattr(config, name, 1) or 1) > 1


def _use_our_classes(vllm_config: VllmConfig) -> None:
    parallel, scheduler = vllm_config.parallel_config, vllm_config.scheduler_config
    if parallel.worker_cls not in _WORKERS.values():
        if parallel.worker_cls not in _WORKERS:
            raise Unsupported(f"worker class {parallel.worker_cls}: emovllm steers {', '.join(_WORKERS)}")
        parallel.worker_cls = _WORKERS[parallel.worker_cls]
    if scheduler.scheduler_cls not in _SCHEDULERS.values():
        if scheduler.scheduler_cls is not None:
            raise Unsupported(
                f"scheduler class {scheduler.scheduler_cls}: emovllm brings its own; drop --scheduler-cls"
            )
        scheduler.scheduler_cls = _SCHEDULERS[bool(scheduler.async_scheduling)]
