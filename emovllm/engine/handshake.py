"""Before an engine's first request: all its workers run this code and hold the circuits that the front end offers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from emovllm import __version__
from emovllm.applied import Served
from emovllm.catalogue import Catalogue
from emovllm.engine.patching import patches
from emovllm.engine.registry import served_by
from emovllm.errors import Unsupported


def install() -> None:
    for patch in (check_engine, check_engine_async):
        patch.install()


# Both servers and `LLM` ask an engine for its tasks before the first request.
@patches("vllm.v1.engine.async_llm.AsyncLLM.get_supported_tasks")
async def check_engine_async(get_supported_tasks: Callable[..., Any], self: Any) -> Any:
    catalogue = served_by(self.vllm_config)
    if catalogue is not None and not getattr(self, "_emotion_checked", False):
        for reports in await ask_engines(self, "emotion_report"):
            check_workers(reports, catalogue.circuits.values())
            check_reading(reports, catalogue)
        self._emotion_checked = True
    return await get_supported_tasks(self)


@patches("vllm.v1.engine.llm_engine.LLMEngine.get_supported_tasks")
def check_engine(get_supported_tasks: Callable[..., Any], self: Any) -> Any:
    catalogue = served_by(self.vllm_config)
    if catalogue is not None and not getattr(self, "_emotion_checked", False):
        reports = self.collective_rpc("emotion_report")
        check_workers(reports, catalogue.circuits.values())
        check_reading(reports, catalogue)
        self._emotion_checked = True
    return get_supported_tasks(self)


async def ask_engines(client: Any, method: str, *args: Any) -> list[list[Any]]:
    """What each worker of each engine answers: of several (data parallelism), `collective_rpc` asks the first alone."""
    core = client.engine_core
    asked = [
        core._call_utility_async("collective_rpc", method, None, args, None, engine=engine)
        for engine in core.core_engines
    ]
    return list(await asyncio.gather(*asked))


def check_reading(reports: list[dict[str, Any]], catalogue: Catalogue) -> None:
    """One stage of the model reads, where the front end offers it. Raises: Unsupported."""
    reading = catalogue.reading
    if reading is not None and not any(report["read"] for report in reports):
        raise Unsupported(
            f"the model has no layer {reading.layer} to read after: other names than mlp.down_proj and "
            "self_attn.o_proj may be missing in emovllm/architectures.py"
        )


def check_workers(reports: list[dict[str, Any]], circuits: Iterable[Served]) -> None:
    """All workers run this code and these circuits, and together hold each of their sites.

    Raises: Unsupported.
    """
    sites = {site for report in reports for site in report["sites"]}
    for report in reports:
        if report["version"] != __version__:
            raise Unsupported(f"a worker runs emovllm {report['version']}, the server {__version__}")
    for served in circuits:
        if any(served.digest not in report["digests"] for report in reports):
            raise Unsupported("a worker holds another circuit than the server")
        missing = served.sites - sites
        if missing:
            raise Unsupported(
                f"the model has no layer to steer for {len(missing)} of the circuit's {len(served.sites)} sites "
                f"({', '.join(sorted(missing)[:4])}): layers of experts have no neurons of their own, and other names "
                "than mlp.down_proj and self_attn.o_proj may be missing in emovllm/architectures.py"
            )
