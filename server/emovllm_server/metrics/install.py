"""Counting of an API server process's requests, from when its engine is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emovllm import __version__
from emovllm.applied import Served
from emovllm.engine.markers import automaton_of
from emovllm.guards import Guard
from emovllm.readout import Reading
from emovllm_server.metrics.collectors import circuit_info, metrics
from emovllm_server.metrics.requests import watch


def install(
    engine_client: Any,
    circuits: Mapping[str, Served],
    reading: Reading | None = None,
    guards: Sequence[Guard] = (),
) -> None:
    """Counts this API server process's requests from now on. Idempotent.

    Args:
        circuits: the circuits served, by name.
        reading: what requests may ask to read, if anything.
        guards: the operator's.
    """
    import vllm

    metrics().build.labels(__version__, vllm.__version__).set(1)
    if reading is not None:
        metrics().reads(reading.labels)
    metrics().watched(guards)
    for name, served in circuits.items():
        circuit_info(name, served.digest, served.spec)
    if engine_client is not None:
        watch(engine_client.log_stats, automaton_of(engine_client.vllm_config))
