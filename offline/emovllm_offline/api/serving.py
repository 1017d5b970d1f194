"""What a function that serves a model is given: the model or a server, and the circuit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emovllm.circuit import Circuit
from emovllm.circuit_files import save_circuit
from emovllm.errors import CircuitError, ModelError
from emovllm.models import is_default
from emovllm_offline.evaluation.settings import RunSettings
from emovllm_offline.evaluation.target import Where


@dataclass(frozen=True, slots=True)
class Server:
    """A running emovllm server, to be evaluated as it is.

    url: such as http://localhost:8000/v1. model: its name there (default: the first that it lists). key_variable: the
    environment variable that holds its key.
    """

    url: str
    model: str | None = None
    key_variable: str = "OPENAI_API_KEY"


def where_of(model: Any, settings: RunSettings) -> Where:
    """Raises: ModelError."""
    how: dict[str, Any] = {"concurrency": settings.concurrency, "engine_args": settings.engine_args}
    if isinstance(model, Server):
        return Where(model.model, base_url=model.url, key_variable=model.key_variable, **how)
    if model is not None and not isinstance(model, str | Path):
        raise ModelError("a model that is in memory cannot be served: save it, and pass its folder or Hugging Face id")
    return Where(None if model is None else str(model), **how)


def place_of(circuit: Circuit | str | Path | None, model: Any, out: Path) -> str | None:
    """Where a circuit can be served from. Raises: CircuitError."""
    if not isinstance(circuit, Circuit):
        return None if circuit is None else str(circuit)
    if isinstance(model, Server):
        raise CircuitError("a server has its circuits loaded: pass the name that one has there, or none")
    # Of one content only: another circuit's results are not to be mistaken for its own.
    folder = out / f"circuit-{circuit.digest()[:12]}"
    save_circuit(circuit, folder)
    return str(folder)


def refuse_without_circuit(circuit: Any, model: Any) -> None:
    """Raises: CircuitError where a model that is no default one has none."""
    if circuit is None and model is not None and not isinstance(model, Server) and not is_default(str(model)):
        raise CircuitError(f"no circuit for {model}: pass its folder or Hugging Face repository id")
