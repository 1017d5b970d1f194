"""Shared by all tests: how they are spread over processes, the default model, and circuits for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from unittest import mock

import pytest

from emovllm import cpu
from support import groups, warm
from support.logs import restored_logging

# Tests reach for no hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests run side by side: each engine computes with one thread, on whatever core is free. vLLM would bind all to one.
os.environ["OMP_NUM_THREADS"] = "1"
# vLLM's search for n-grams has Numba start threads, and engines after it in the same process compute nonsense where the
# model had fewer.
os.environ["NUMBA_NUM_THREADS"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
# As `emovllm serve` does: kernels that were compiled under another instruction set compute nonsense.
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"emovllm-tests-{os.getuid()}" / cpu.instruction_set())
)

# The memory that one test process and its engines may take, in GiB.
_MEMORY = 7
# Names the parent of warm commands to the processes of xdist.
_PARENT = "EMOVLLM_TESTS_PARENT"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: now and then each waits for what is no work, such as a server's last request."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)) + 1, int(memory / _MEMORY)))


def pytest_configure(config: pytest.Config) -> None:
    """One parent of warm commands for all test processes; vLLM's build for GPUs is nothing to fork."""
    if cpu.is_cpu_build():
        address = os.environ.get(_PARENT) or warm.start()
        os.environ[_PARENT] = address
        warm.install(address, dict(os.environ))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share an engine or a server run in one process, one after the other; the longest of these begin."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(groups.group_of(item)))
    items.sort(key=lambda item: groups.order_of(item.get_closest_marker("xdist_group").args[0]))  # type: ignore[union-attr]


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.getoption("loadgroup", False) and any("@" not in item.nodeid for item in session.items):
        raise pytest.UsageError(
            "this pytest-xdist does not group tests under this pytest: each would start its own engine"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Around the fixtures of a module and of the session, too: what they import may mute the loggers of all."""
    with restored_logging():
        return (yield)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ends a group's engines and servers with its last test: together they would not fit into memory."""
    markers = [each and each.get_closest_marker("xdist_group") for each in (item, nextitem)]
    if markers[1] is None or markers[0].args != markers[1].args:  # type: ignore[union-attr]
        groups.close()


@pytest.fixture(autouse=True)
def restored_environment() -> Iterator[None]:
    """What a test sets, or vLLM in its process, is gone after it: the warm parent's environment is to stay ours."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def default_model() -> str:
    from emovllm.models import default_model as convert

    return str(convert())


@pytest.fixture(scope="session")
def strong_circuit(default_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random circuit for the default model, in all layers, that changes replies at once."""
    from support.circuits import random_circuit

    return random_circuit(default_model, tmp_path_factory.mktemp("circuits") / "strong", probe=True)
