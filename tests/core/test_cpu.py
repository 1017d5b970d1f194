"""What vLLM's CPU build is told where the user has not said it."""

from __future__ import annotations

import os
import threading

import pytest
import torch._inductor.config as inductor

from emovllm import cpu

RESERVED = "VLLM_CPU_NUM_OF_RESERVED_CPU"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    environment: dict[str, str] = {"HOME": "/home/anybody"}
    monkeypatch.setattr(os, "environ", environment)
    return environment


@pytest.mark.parametrize(("cpu_build", "cores", "expected"), [(True, 2, "0"), (True, 32, None), (False, 2, None)])
def test_a_model_has_all_of_few_cores(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    cpu_build: bool,
    cores: int,
    expected: str | None,
) -> None:
    monkeypatch.setattr(cpu, "is_cpu_build", lambda: cpu_build)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    cpu.prepare()
    assert environment.get(RESERVED) == expected
    assert ("TORCHINDUCTOR_CACHE_DIR" in environment) == cpu_build


def test_what_the_user_has_set_stays(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "is_cpu_build", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    environment |= {RESERVED: "1", "VLLM_USE_AOT_COMPILE": "1"}
    cpu.prepare()
    assert (environment[RESERVED], environment["VLLM_USE_AOT_COMPILE"]) == ("1", "1")


def test_kernels_of_each_instruction_set_have_a_cache_of_their_own(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "is_cpu_build", lambda: True)
    folders = set()
    for told in ("", "avx2", "default"):
        environment |= {"ATEN_CPU_CAPABILITY": told}
        environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
        cpu.prepare()
        folders.add(environment["TORCHINDUCTOR_CACHE_DIR"])
    assert len(folders) == 3


@pytest.mark.parametrize(
    ("flags", "cpu_build", "slow"),
    [
        (["sse", "avx2"], True, True),
        (["avx2", "avx512f", "amx_bf16"], True, False),
        (["asimd", "bf16"], True, False),
        ([], True, False),
        (["sse", "avx2"], False, False),
    ],
)
def test_processors_of_avx2_alone_are_slow_in_bfloat16(
    flags: list[str], cpu_build: bool, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "is_cpu_build", lambda: cpu_build)
    monkeypatch.setattr(cpu, "flags", lambda: flags)
    assert cpu.slow_in_bfloat16() == slow
    assert cpu.dtype() == ("float32" if slow else "auto")


def test_small_engines_leave_memory_to_others_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr(cpu, "is_cpu_build", lambda: False)
    cpu.keep_small()
    assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ
    monkeypatch.setattr(cpu, "is_cpu_build", lambda: True)
    cpu.keep_small()
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == cpu.SMALL_CACHE
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    cpu.keep_small()
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "7"


@pytest.mark.parametrize("build", [True, False])
def test_a_model_is_compiled_on_every_core_by_the_cpu_build(build: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "is_cpu_build", lambda: build)
    cores = os.sched_getaffinity(0)
    before = (inductor.compile_threads, inductor.worker_start_method)
    unbound, bound = threading.Event(), {min(cores)}
    # vLLM binds the thread that compiles, and leaves others as they are.
    other = threading.Thread(target=unbound.wait)
    other.start()
    os.sched_setaffinity(0, bound)
    try:
        with cpu.compiling():
            assert os.sched_getaffinity(0) == (cores if build else bound)
            during = (len(cores), "fork") if build else before
            assert (inductor.compile_threads, inductor.worker_start_method) == during
        assert os.sched_getaffinity(0) == bound
        assert (inductor.compile_threads, inductor.worker_start_method) == before
    finally:
        os.sched_setaffinity(0, cores)
        unbound.set()
        other.join()
