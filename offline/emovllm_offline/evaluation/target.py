"""What an evaluation asks: a server that runs already, or an engine of this machine and its circuit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from emovllm.circuit_files import load_circuit, resolve_circuit
from emovllm.errors import CircuitError, EvaluationError
from emovllm.models import NAME, is_default, public_model_id, resolve_model, shipped_circuits
from emovllm.progress import ENGINE_START, ENGINE_START_HINT, stage
from emovllm_offline.endpoint.loops import wait_for
from emovllm_offline.evaluation.client import Connection, connect
from emovllm_offline.evaluation.local_server import local_server
from emovllm_offline.evaluation.plan import Served


@dataclass(frozen=True, slots=True)
class Where:
    """What generates: a server that runs already (base_url), or one of this machine.

    model, circuit: as on the command line; None for the default ones, or those of the server, whose names for them they
    are otherwise. readout: whether replies are read as they are written. targets: whether the engine reads so that
    strengths can follow. probe: what reads in an engine of this machine, a file or its folder; None for the one in the
    circuit's folder.
    """

    model: str | None = None
    circuit: str | None = None
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 64
    engine_args: tuple[str, ...] = ()
    readout: bool = False
    targets: bool = False
    probe: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What a `Where` turned out to be. model, circuit: local places; None behind a base_url."""

    served: Served
    model: str | None
    circuit: Path | None

    @property
    def name(self) -> str:
        """What its model is called in results."""
        # A server's name for its model is often where it lies.
        return Path(self.served.model).name if self.model is None else public_model_id(self.model)


def find_target(where: Where, steering: bool) -> Target:
    """Raises: EvaluationError, EndpointError, CircuitError, DefaultModelError."""
    if where.base_url is not None:
        return Target(_describe(where.base_url, where), None, None)
    circuit = where.circuit or (str(shipped_circuits() / NAME) if is_default(where.model) else None)
    if circuit is None:
        raise CircuitError(
            f"no circuit for {where.model}: give --circuit, a folder or a Hugging Face repository id "
            "(`emovllm discover` makes one)"
        )
    place = resolve_circuit(circuit)
    loaded = load_circuit(place)
    if steering and not loaded.directions:
        raise EvaluationError(
            f"{place}: holds no directions, which steering needs: leave the method out, or make the circuit anew with "
            "`emovllm discover` (--stage circuit, where what was measured is still there)"
        )
    served = Served(
        "evaluated",
        loaded.digest(),
        {emotion.name: emotion.maximal / emotion.recommended for emotion in loaded.spec.emotions},
        ("circuit", "steering") if loaded.directions else ("circuit",),
        spec=loaded.spec,
    )
    return Target(served, resolve_model(where.model), place)


def _describe(base_url: str, where: Where) -> Served:
    async def ask() -> Served:
        async with connect(connection(base_url, where)) as client:
            return await client.describe()

    return wait_for(ask())


def connection(base_url: str, where: Where) -> Connection:
    """To the server at base_url, with the key that the environment holds for it."""
    key = os.environ.get(where.key_variable) or "none"
    return Connection(base_url, where.model, key, where.circuit, where.concurrency, readout=where.readout)


@contextmanager
def serving(where: Where, target: Target, log: Path, steering: bool) -> Iterator[Connection]:
    """The server that is asked: where it is none yet, an engine is started, and stopped at the end. log: of that."""
    if target.model is None or target.circuit is None:
        assert where.base_url is not None
        yield connection(where.base_url, where)
        return
    server = local_server(
        target.model,
        target.circuit,
        log,
        steering=steering,
        concurrency=where.concurrency,
        engine_args=(*_reads(where), *where.engine_args),
    )
    with ExitStack() as stack:
        with stage(ENGINE_START, hint=ENGINE_START_HINT):
            local = stack.enter_context(server)
        local.readout = where.readout
        yield local


def _reads(where: Where) -> tuple[str, ...]:
    """What makes an engine read."""
    if not (where.readout or where.targets):
        return ()
    return ("--readout",) if where.probe is None else ("--probe", where.probe)
