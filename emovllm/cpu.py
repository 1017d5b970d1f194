"""What vLLM's CPU build is told where the user has not said it: environment variables, read when it starts."""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from emovllm.models import cache_root

# Where there are so few, one that serves nothing but the front end is missed.
FEW_CORES = 4
# GiB for the keys and values of a small engine, as `VLLM_CPU_KVCACHE_SPACE`: of itself vLLM takes nearly all of the
# machine's memory, and does not start where another process has some.
SMALL_CACHE = "2"


def is_cpu_build() -> bool:
    """Whether the installed vLLM is the one for CPUs."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def flags() -> list[str]:
    """What this processor says that it can do; nothing where Linux does not tell."""
    try:
        with open("/proc/cpuinfo") as file:
            line = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        line = ""
    return line.partition(":")[2].split()


def slow_in_bfloat16() -> bool:
    """Whether vLLM's CPU build serves a model in bfloat16 at a fraction of its speed in float32 here: x86 processors
    without AVX-512 or AMX compute neither (docs/results/performance.md)."""
    return is_cpu_build() and "avx2" in (known := flags()) and "avx512f" not in known


def dtype() -> str:
    """vLLM's `dtype` of an engine whose model may take twice its memory: as it is stored, but where that is slow."""
    return "float32" if slow_in_bfloat16() else "auto"


def instruction_set() -> str:
    """A name for what this processor can do, and for what PyTorch is told of it (`ATEN_CPU_CAPABILITY`): the same where
    compiled kernels are. PyTorch (2.13) keeps no such thing with the kernels that it caches, and a process that takes
    up those of another instruction set computes NaN or dies; homes and images are shared between machines."""
    told = os.environ.get("ATEN_CPU_CAPABILITY", "")
    return hashlib.sha256(f"{platform.machine()}\n{' '.join(flags())}\n{told}".encode()).hexdigest()[:12]


def prepare() -> None:
    """Before vLLM is imported. Does nothing where vLLM is not the CPU build; what is set already stays."""
    if not is_cpu_build():
        return
    # vLLM saves its whole compiled model and then, on a CPU, fails to load it and compiles anew (0.32: "no attribute
    # 'finalize_loading'"). PyTorch's own caches work: 12 s in place of 40 for the default model.
    os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root() / "inductor" / instruction_set()))
    if len(os.sched_getaffinity(0)) <= FEW_CORES:
        # vLLM leaves a core to its scheduler, which is half of two; what that costs is in docs/results/performance.md.
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")


def keep_small() -> None:
    """Before an engine of a small model is made: no more memory for keys and values than it has a use for. Does nothing
    where vLLM is not the CPU build; what is set already stays."""
    if is_cpu_build():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", SMALL_CACHE)


@contextmanager
def compiling() -> Iterator[None]:
    """While a model is compiled, as many C++ compilers at a time as this process has cores. Does nothing where vLLM is
    not the CPU build.

    vLLM binds the thread that compiles to one core, which the compilers that it starts inherit; and it sets
    `TORCHINDUCTOR_COMPILE_THREADS=1`, because its workers are daemons, which may have no children of `multiprocessing`.
    C++ kernels are compiled by programs that threads start. That pool stays shut.
    """
    if not is_cpu_build():
        yield
        return
    import torch._inductor.config as inductor

    bound = os.sched_getaffinity(0)
    cores = set(bound)
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # one that has ended
            cores |= os.sched_getaffinity(int(thread))
    os.sched_setaffinity(0, cores)
    gc.freeze()
    try:
        with inductor.patch(compile_threads=len(cores), worker_start_method="fork"):
            yield
    finally:
        gc.unfreeze()
        os.sched_setaffinity(0, bound)
