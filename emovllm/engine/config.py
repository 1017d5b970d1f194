"""From `additional_config["emovllm"]` to an engine that steers: checked, refused where it would not be exact.

The settings name our worker and scheduler classes in vLLM's own configuration, which every process receives: a process
without emovllm cannot start, rather than serve unsteered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emovllm import __version__, probe
from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit, resolve_circuit
from emovllm.emotion import KEY
from emovllm.engine import connectors, markers
from emovllm.engine.arithmetic import MAX_FUSED
from emovllm.engine.settings import DEFAULT_NAME, MAX_EMOTIONS, Carried, Settings, settings_of
from emovllm.errors import Unsupported
from emovllm.quantization import bits_of, bits_of_name
from emovllm.readout import Reading
from emovllm.spec import ModelSpec

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# All that we wrap, subclass, call and read is in these, as scripts/check_vllm_versions finds.
SUPPORTED_VLLM = tuple(f"0.{minor}" for minor in range(26, 34))

_WORKERS = {
    "vllm.v1.worker.gpu_worker.Worker": "emovllm.engine.worker.EmotionWorker",
    "vllm.v1.worker.cpu_worker.CPUWorker": "emovllm.engine.cpu_worker.EmotionCPUWorker",
}
_SCHEDULERS = {
    False: "emovllm.engine.scheduler.EmotionScheduler",
    True: "emovllm.engine.scheduler.EmotionAsyncScheduler",
}


def configure(vllm_config: VllmConfig) -> dict[str, Circuit] | None:
    """Makes the engines started from `vllm_config` steer, if it names circuits. Idempotent.

    Returns: the circuits by name; None where none is configured.
    Raises: Unsupported, CircuitError.
    """
    settings = settings_of(vllm_config)
    if settings is None:
        return None
    _check_version(settings)
    folders = {name: resolve_circuit(source) for name, source in settings.sources.items()}
    circuits = {name: load_circuit(folder) for name, folder in folders.items()}
    for name, circuit in circuits.items():
        check_model(vllm_config, circuit_called(name), circuit.spec.model)
        check_directions(settings, name, circuit)
    probe_path, reading = _reading(vllm_config, settings, folders)
    _check_calm(vllm_config, settings, circuits.values())
    capacity = _capacity(settings, circuits.values())
    _check_modes(vllm_config, settings)
    _check_kernel(settings, vllm_config)
    _use_our_classes(vllm_config)
    _unroll_sums(vllm_config)
    digests = {name: circuit.digest() for name, circuit in circuits.items()}
    if len(set(digests.values())) < len(digests):
        raise Unsupported(f"of the circuits {', '.join(digests)}, two are the same")
    filled = settings.model_copy(
        update={
            "circuit": {name: str(folder) for name, folder in folders.items()},
            "capacity": capacity,
            "digests": digests,
            "graph": graph_tag(circuits.values(), capacity, adapters_of(vllm_config), settings.steering, reading),
            "probe": str(probe_path) if probe_path is not None else None,
            "reading": reading,
            "markers": markers.configured(vllm_config, settings.tool_parser),
        }
    )
    vllm_config.additional_config = {**vllm_config.additional_config, KEY: Carried(filled)}
    return circuits


def _check_kernel(settings: Settings, vllm_config: VllmConfig) -> None:
    on_gpu = vllm_config.device_config.device_type == "cuda"
    if settings.injection_kernel == "triton" and not (on_gpu and find_spec("triton")):
        raise Unsupported("the injection kernel triton needs a GPU, and Triton installed; leave --injection-kernel out")


def _unroll_sums(vllm_config: VllmConfig) -> None:
    """Has Inductor write the sum over as many emotions as we fuse into the kernel that follows; by itself it does so
    below 8, and starts a kernel of its own from there on."""
    if vllm_config.device_config.device_type == "cuda":
        options = vllm_config.compilation_config.inductor_compile_config
        options.setdefault("unroll_reductions_threshold", MAX_FUSED + 1)


def has_room(circuits: Iterable[Circuit], capacity: int) -> bool:
    """Whether circuits may come later, so that every projection of the model must be ready for them."""
    return capacity > sum(len(circuit.names) for circuit in circuits)


def graph_tag(
    circuits: Iterable[Circuit], capacity: int, adapters: int, steering: bool = False, reading: Reading | None = None
) -> str:
    """What our part of the compiled graph depends on: the code, the sites, the coefficients' columns."""
    circuits = list(circuits)
    every = {site for circuit in circuits for site in circuit.sites()}
    sites = ",".join(f"{kind}{layer}" for kind, layer in sorted(every, key=lambda site: (site[1], site[0])))
    places = "all" if has_room(circuits, capacity) else sites
    read = f"/reads{reading.layer}x{len(reading.labels)}" if reading is not None else ""
    return f"{__version__}/{capacity}x{1 + adapters}/{places}{'/steering' if steering else ''}{read}"


def check_directions(settings: Settings, name: str, circuit: Circuit) -> None:
    """Raises: Unsupported where steering is asked for and a circuit has nothing for it."""
    if settings.steering and not circuit.directions:
        raise Unsupported(
            f"the circuit {name} holds no directions, which steering needs; `emovllm discover` writes them"
        )


def _capacity(settings: Settings, circuits: Iterable[Circuit]) -> int:
    needed = sum(len(circuit.names) for circuit in circuits)
    if needed > MAX_EMOTIONS:
        raise Unsupported(f"the circuits have {needed} emotions; at most {MAX_EMOTIONS} can be served")
    capacity = settings.capacity or needed
    if needed > capacity:
        raise Unsupported(f"the circuits have {needed} emotions, and the capacity is {capacity}; raise it")
    return capacity


def adapters_of(vllm_config: VllmConfig) -> int:
    """Slots for LoRA adapters, 0 without LoRA."""
    return vllm_config.lora_config.max_loras if vllm_config.lora_config else 0


def weight_bits(vllm_config: VllmConfig) -> int | None:
    """Of the served model's quantised weights, the coarsest of them; None where nothing tells."""
    model = vllm_config.model_config
    settings = getattr(model.hf_config, "quantization_config", None)
    if settings is None:
        settings = getattr(model.hf_text_config, "quantization_config", None)
    if settings is not None:
        return bits_of(settings if isinstance(settings, Mapping) else settings.to_dict())
    # Quantised as it is loaded.
    return bits_of_name(str(model.quantization or ""))


def _check_version(settings: Settings) -> None:
    import vllm

    minor = ".".join(vllm.__version__.split(".")[:2])
    if minor not in SUPPORTED_VLLM and not settings.allow_untested_vllm:
        raise Unsupported(
            f"emovllm {__version__} is made for vLLM {SUPPORTED_VLLM[0]} to {SUPPORTED_VLLM[-1]} and this is "
            f"{vllm.__version__}; install one of those, or add to additional_config's {KEY!r}, at your own risk, "
            '"allow_untested_vllm": true'
        )


def circuit_called(name: str) -> str:
    return "the circuit" if name == DEFAULT_NAME else f"the circuit {name}"


def _reading(
    vllm_config: VllmConfig, settings: Settings, folders: Mapping[str, Path]
) -> tuple[Path | None, Reading | None]:
    """The probe's folder or file, and what is read; None where nothing is. Raises: Unsupported, ProbeError."""
    if settings.probe is not None:
        path = Path(settings.probe).expanduser().resolve()
    elif settings.readout:
        having = {name: folder for name, folder in folders.items() if (folder / probe.NAME).is_file()}
        if len(having) != 1:
            where = f"of the circuits {', '.join(having)}, each has a probe" if having else "no circuit has a probe"
            raise Unsupported(f"{where}: name the one to read with by --probe DIR (`emovllm probe train` makes one)")
        (path,) = having.values()
    elif settings.readout_layer is not None:
        raise Unsupported("a layer is named to be read after, and no probe: add --readout, or --probe DIR")
    else:
        return None, None
    trained = probe.load_probe(path)
    check_model(vllm_config, "the probe", trained.spec.model)
    return path, Reading.of(trained.digest, trained.at(settings.readout_layer))


def _check_calm(vllm_config: VllmConfig, settings: Settings, circuits: Iterable[Circuit]) -> None:
    """Raises: Unsupported where a guard that calms could not do so exactly."""
    calming = [guard for guard in settings.guards if guard.action == "calm"]
    if not calming:
        return
    known = {name for circuit in circuits for name in circuit.names}
    if missing := [guard.label for guard in calming if guard.label not in known]:
        raise Unsupported(f"a guard calms {', '.join(missing)}, and no circuit has that emotion: flag or stop instead")
    refusals = {
        "pipeline parallelism, where a stage does not know what a later one reads": _above_one(
            vllm_config.parallel_config, "pipeline_parallel_size"
        ),
        "LoRA adapters": adapters_of(vllm_config) > 0,
        "circuits that are loaded later (circuit_root)": settings.circuit_root is not None,
        "KV transfer, where what was read elsewhere is not known": vllm_config.kv_transfer_config is not None,
    }
    if refused := [what for what, present in refusals.items() if present]:
        raise Unsupported(f"a guard cannot calm with {'; nor with '.join(refused)}: flag or stop instead")


def check_model(vllm_config: VllmConfig, which: str, spec: ModelSpec) -> None:
    """Compares dimensions, which is quick; the workers compare weights once they are loaded. Raises: Unsupported.

    which: is checked, in words.
    """
    model = vllm_config.model_config
    served = model.hf_text_config
    pairs: dict[str, tuple[Any, Any]] = {
        "num_hidden_layers": (served.num_hidden_layers, spec.num_hidden_layers),
        "hidden_size": (served.hidden_size, spec.hidden_size),
    }
    if spec.layers is None:
        pairs |= {
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
        raise Unsupported(f"{which} was made for {spec.id}, which is not the model {model.model}: {'; '.join(wrong)}")


def _check_modes(vllm_config: VllmConfig, settings: Settings) -> None:
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
        "weights that are moved to the device when they are needed, where the circuit cannot be folded through them; "
        "drop --offload-group-size": _prefetches(vllm_config),
        "offloaded weights without unified addressing; unset VLLM_WEIGHT_OFFLOADING_DISABLE_UVA": _copies(vllm_config),
        "weight transfer, which changes weights after the circuit was folded": bool(
            getattr(vllm_config, "weight_transfer_config", None)
        ),
    }
    refused = [what for what, present in refusals.items() if present]
    refused += connectors.refusals(vllm_config, settings.trusted_connectors)
    if refused:
        raise Unsupported(f"emovllm cannot steer exactly with {'; nor with '.join(refused)}")


def _prefetches(vllm_config: VllmConfig) -> bool:
    offload = getattr(vllm_config, "offload_config", None)
    return offload is not None and offload.offload_backend != "uva" and offload.prefetch.offload_group_size > 0


def _copies(vllm_config: VllmConfig) -> bool:
    import vllm.envs as envs

    offload = getattr(vllm_config, "offload_config", None)
    disabled = getattr(envs, "VLLM_WEIGHT_OFFLOADING_DISABLE_UVA", False)
    return offload is not None and disabled and offload.uva.cpu_offload_gb > 0


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
